package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// bashCompletion and zshCompletion ask the binary itself, so they are never out of date.
const (
	bashCompletion = `# bash completion for husk
_husk() {
  local cur=${COMP_WORDS[COMP_CWORD]} flag opts
  flag=${cur/#--/-} # a bare -- would end the options
  if [[ $cur == -* ]]; then
    opts=$("${COMP_WORDS[@]:0:COMP_CWORD}" "$flag" --generate-bash-completion 2>/dev/null)
  else
    opts=$("${COMP_WORDS[@]:0:COMP_CWORD}" --generate-bash-completion 2>/dev/null)
  fi
  mapfile -t COMPREPLY < <(compgen -W "$opts" -- "$cur")
}
complete -o bashdefault -o default -F _husk husk
`
	zshCompletion = `#compdef husk
_husk() {
  local -a opts
  local cur=${words[-1]/#--/-}
  if [[ $cur == -* ]]; then
    opts=("${(@f)$(${words[@]:0:#words[@]-1} ${cur} --generate-bash-completion 2>/dev/null)}")
  else
    opts=("${(@f)$(${words[@]:0:#words[@]-1} --generate-bash-completion 2>/dev/null)}")
  fi
  if [[ -n ${opts[1]} ]]; then _describe 'values' opts; else _files; fi
}
if [[ ${funcstack[1]} == _husk ]]; then _husk; else compdef _husk husk; fi
`
)

func completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print the completion script of a shell",
		UsageText: "husk completion bash|zsh|fish",
		BashComplete: func(c *cli.Context) {
			_, _ = fmt.Fprintln(c.App.Writer, "bash\nzsh\nfish")
		},
		Action: func(c *cli.Context) error {
			var script string
			switch shell := c.Args().First(); shell {
			case "bash":
				script = bashCompletion
			case "zsh":
				script = zshCompletion
			case "fish":
				fish, err := c.App.ToFishCompletion()
				if err != nil {
					return fmt.Errorf("generate fish completion: %w", err)
				}
				script = fish
			default:
				return errdefs.Newf(errdefs.InvalidArgument, "completion", "%q is none of bash, zsh, fish", shell)
			}
			_, err := fmt.Fprint(c.App.Writer, strings.TrimRight(script, "\n")+"\n")
			return err
		},
	}
}

func manCommand() *cli.Command {
	return &cli.Command{
		Name:      "man",
		Usage:     "print the man page",
		UsageText: "husk man",
		Hidden:    true,
		Action: func(c *cli.Context) error {
			page, err := c.App.ToManWithSection(8)
			if err != nil {
				return fmt.Errorf("generate man page: %w", err)
			}
			_, err = fmt.Fprint(c.App.Writer, strings.TrimRight(page, "\n")+"\n")
			return err
		},
	}
}
