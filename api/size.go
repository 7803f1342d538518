package api

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/holdfast-storage/holdfast"
)

// ParseBytes reads "10GiB", "10G", "1.5T", "500MB" or plain bytes. As with
// truncate(1), K, M, G and T (also with iB) are powers of 1024, KB, MB, GB and
// TB powers of 1000. The error is of kind Invalid.
func ParseBytes(s string) (int64, error) {
	bad := func(why string) (int64, error) {
		return 0, holdfast.E("read size", holdfast.Invalid, fmt.Sprintf("%q %s; write it like 10GiB, 1.5T, 500MB or in plain bytes", s, why))
	}
	t := strings.TrimSpace(s)
	i := strings.IndexFunc(t, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	num, unit := t, ""
	if i >= 0 {
		num, unit = t[:i], strings.TrimSpace(t[i:])
	}
	f, err := strconv.ParseFloat(num, 64)
	if err != nil {
		return bad("is no size")
	}
	mul, ok := unitBytes(unit)
	if !ok {
		return bad("has an unknown unit")
	}
	if f*mul >= math.MaxInt64 {
		return bad("is too large")
	}
	if n, err := strconv.ParseInt(num, 10, 64); err == nil {
		return n * int64(mul), nil // exact also beyond 2^53
	}
	return int64(f * mul), nil
}

func unitBytes(u string) (float64, bool) {
	u = strings.ToUpper(u)
	if u == "" || u == "B" {
		return 1, true
	}
	exp := strings.IndexByte("KMGTP", u[0]) + 1
	if exp == 0 {
		return 0, false
	}
	switch u[1:] {
	case "", "I", "IB":
		return math.Pow(1024, float64(exp)), true
	case "B":
		return math.Pow(1000, float64(exp)), true
	}
	return 0, false
}
