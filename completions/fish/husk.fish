# husk fish shell completion

function __fish_husk_no_subcommand --description 'Test if there has been any subcommand yet'
    for i in (commandline -opc)
        if contains -- $i serve pull images inspect resolve rm check config version completion help h help h
            return 1
        end
    end
    return 0
end

complete -c husk -n '__fish_husk_no_subcommand' -l config -s c -r -d 'read the configuration from `FILE`'
complete -c husk -n '__fish_husk_no_subcommand' -f -l help -s h -d 'show help'
complete -c husk -n '__fish_husk_no_subcommand' -f -l version -s v -d 'print the version'
complete -c husk -n '__fish_husk_no_subcommand' -f -l help -s h -d 'show help'
complete -c husk -n '__fish_husk_no_subcommand' -f -l version -s v -d 'print the version'
complete -c husk -n '__fish_seen_subcommand_from serve' -f -l help -s h -d 'show help'
complete -r -c husk -n '__fish_husk_no_subcommand' -a 'serve' -d 'stand in front of CRI-O'
complete -c husk -n '__fish_seen_subcommand_from pull' -f -l help -s h -d 'show help'
complete -r -c husk -n '__fish_husk_no_subcommand' -a 'pull' -d 'fetch manifest and config of an image, as a pod\'s pull would'
complete -c husk -n '__fish_seen_subcommand_from pull' -f -l username -s u -r -d 'log in to the registry as `NAME`'
complete -c husk -n '__fish_seen_subcommand_from pull' -f -l password-stdin -d 'read the password from standard input'
complete -c husk -n '__fish_seen_subcommand_from pull' -f -l namespace -r -d 'apply the signature policy of a Kubernetes `NAMESPACE`'
complete -c husk -n '__fish_seen_subcommand_from pull' -f -l format -r -d 'print as `FORMAT`: text, json, or a Go template with json\'s names in camel case, such as \'{{.ImageID}}\''
complete -c husk -n '__fish_seen_subcommand_from images' -f -l help -s h -d 'show help'
complete -r -c husk -n '__fish_husk_no_subcommand' -a 'images' -d 'list the layer-less images of this node'
complete -c husk -n '__fish_seen_subcommand_from images' -f -l format -r -d 'print as `FORMAT`: text, json, or a Go template with json\'s names in camel case, such as \'{{.ImageID}}\''
complete -c husk -n '__fish_seen_subcommand_from inspect' -f -l help -s h -d 'show help'
complete -r -c husk -n '__fish_husk_no_subcommand' -a 'inspect' -d 'show layer-less images as JSON, with digests, config and references'
complete -c husk -n '__fish_seen_subcommand_from inspect' -f -l format -r -d 'print as `FORMAT`: text, json, or a Go template with json\'s names in camel case, such as \'{{.ImageID}}\''
complete -c husk -n '__fish_seen_subcommand_from resolve' -f -l help -s h -d 'show help'
complete -r -c husk -n '__fish_husk_no_subcommand' -a 'resolve' -d 'show what a name stands for on this node, CRI-O\'s own images included'
complete -c husk -n '__fish_seen_subcommand_from resolve' -f -l runtime-handler -r -d 'only images that pods of the runtime handler `NAME` can start from'
complete -c husk -n '__fish_seen_subcommand_from resolve' -f -l format -r -d 'print as `FORMAT`: text, json, or a Go template with json\'s names in camel case, such as \'{{.ImageID}}\''
complete -c husk -n '__fish_seen_subcommand_from rm' -f -l help -s h -d 'show help'
complete -r -c husk -n '__fish_husk_no_subcommand' -a 'rm' -d 'remove a layer-less image: by ID with all its references, by reference only that one'
complete -c husk -n '__fish_seen_subcommand_from check' -f -l help -s h -d 'show help'
complete -r -c husk -n '__fish_husk_no_subcommand' -a 'check' -d 'look for damaged, left-over and unused records, and repair them'
complete -c husk -n '__fish_seen_subcommand_from check' -f -l repair -d 'mend or remove what is found'
complete -c husk -n '__fish_seen_subcommand_from check' -f -l format -r -d 'print as `FORMAT`: text, json, or a Go template with json\'s names in camel case, such as \'{{.ImageID}}\''
complete -c husk -n '__fish_seen_subcommand_from config' -f -l help -s h -d 'show help'
complete -r -c husk -n '__fish_husk_no_subcommand' -a 'config' -d 'show the effective configuration, or check it and CRI-O\'s'
complete -c husk -n '__fish_seen_subcommand_from config' -f -l check -d 'check the configuration, and CRI-O\'s as far as Husk depends on it'
complete -c husk -n '__fish_seen_subcommand_from config' -f -l format -r -d 'print as `FORMAT`: text, json, or a Go template with json\'s names in camel case, such as \'{{.ImageID}}\''
complete -c husk -n '__fish_seen_subcommand_from version' -f -l help -s h -d 'show help'
complete -r -c husk -n '__fish_husk_no_subcommand' -a 'version' -d 'show the version of husk'
complete -c husk -n '__fish_seen_subcommand_from version' -f -l format -r -d 'print as `FORMAT`: text, json, or a Go template with json\'s names in camel case, such as \'{{.ImageID}}\''
complete -c husk -n '__fish_seen_subcommand_from completion' -f -l help -s h -d 'show help'
complete -r -c husk -n '__fish_husk_no_subcommand' -a 'completion' -d 'print the completion script of a shell'
complete -c husk -n '__fish_seen_subcommand_from completion' -f -l help -s h -d 'show help'
complete -c husk -n '__fish_seen_subcommand_from help h' -f -l help -s h -d 'show help'
complete -r -c husk -n '__fish_seen_subcommand_from completion' -a 'help h' -d 'Shows a list of commands or help for one command'
complete -c husk -n '__fish_seen_subcommand_from help h' -f -l help -s h -d 'show help'
complete -r -c husk -n '__fish_husk_no_subcommand' -a 'help h' -d 'Shows a list of commands or help for one command'
