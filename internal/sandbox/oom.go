package sandbox

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

func oomScoreFile(pid int) string { return fmt.Sprintf("/proc/%d/oom_score_adj", pid) }

// OOMScore returns a process's oom_score_adj.
func OOMScore(pid int) (int, error) {
	data, err := os.ReadFile(oomScoreFile(pid))
	if err != nil {
		return 0, fmt.Errorf("read oom_score_adj: %w", err)
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("read oom_score_adj: %w", err)
	}
	return score, nil
}

func raiseOOMScore(pid, least int) error {
	score, err := OOMScore(pid)
	if err != nil || score >= least {
		return err
	}
	if err := os.WriteFile(oomScoreFile(pid), []byte(strconv.Itoa(least)), 0); err != nil {
		return fmt.Errorf("set oom_score_adj: %w", err)
	}
	return nil
}
