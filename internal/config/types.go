package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration written as "90s".
type Duration struct{ time.Duration }

// UnmarshalText parses a Go duration. "0s" is the field's zero; less is refused.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is no duration such as 90s, 10m or 720h", text)
	}
	if v < 0 {
		return fmt.Errorf("duration %s is negative", v)
	}
	d.Duration = v
	return nil
}

// MarshalText writes what [Duration.UnmarshalText] reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String drops the zero units that time.Duration prints: "2m", not "2m0s".
func (d Duration) String() string {
	s := d.Duration.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Size is a number of bytes, written as "512MiB" or as a plain number.
type Size int64

type unit struct {
	name  string
	bytes int64
}

// sizeUnits lists the units, those of 1024 from the largest.
func sizeUnits() []unit {
	return []unit{
		{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
		{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1},
	}
}

// UnmarshalText reads a whole number of bytes or of one of the units B, kB, MB, GB,
// TB (of 1000) and KiB, MiB, GiB, TiB (of 1024). "0" is the field's zero.
func (s *Size) UnmarshalText(text []byte) error {
	number, factor := string(text), int64(1)
	for _, u := range sizeUnits() {
		if rest, ok := strings.CutSuffix(number, u.name); ok {
			number, factor = rest, u.bytes
			break
		}
	}
	n, err := strconv.ParseUint(number, 10, 63) // no sign, no spaces, no fraction
	if err != nil || int64(n) > math.MaxInt64/factor {
		return fmt.Errorf("%q is no size such as 1048576, 512MiB or 2GB", text)
	}
	*s = Size(int64(n) * factor)
	return nil
}

// MarshalText writes what [Size.UnmarshalText] reads.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String is exact: the largest unit of 1024 that divides s, or bytes.
func (s Size) String() string {
	for _, u := range sizeUnits()[:4] {
		if s != 0 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
