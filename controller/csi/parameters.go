package csi

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// params are the parameters of CreateVolume, read. Zero members were not given.
type params struct {
	spec  holdfast.Spec // of which only what parameters set
	given map[string]string
}

// parameterNames are what CreateVolume takes, compared without regard to case.
func parameterNames() []string {
	return []string{"replicas", "minInSync", "fsType", "locality", "racks", "zones", "logicalBlockSize", "ioTimeout", "slowReplicas", "iops", "bandwidth", "burst"}
}

// kubernetesPrefix marks what Kubernetes' sidecars add by themselves.
const kubernetesPrefix = "csi.storage.k8s.io/"

// parameters reads the parameters. The error is of kind Invalid and names what is
// not understood. An unset key means nothing given.
func (s *Server) parameters(op string, given map[string]string) (params, error) {
	p := params{given: given}
	for _, key := range slices.Sorted(maps.Keys(given)) {
		if strings.HasPrefix(key, kubernetesPrefix) {
			continue
		}
		known, err := p.set(key, strings.TrimSpace(given[key]))
		if err != nil {
			return p, invalid(op, "the parameter %s: %v", key, err)
		}
		if !known && !s.cfg.IgnoreUnknownParameters {
			return p, invalid(op, "the parameter %q is unknown; there are %s", key, strings.Join(parameterNames(), ", "))
		}
	}
	return p, nil
}

// set reads one parameter.
func (p *params) set(key, value string) (known bool, err error) {
	number := func(to *int) (bool, error) {
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 {
			return true, fmt.Errorf("%q is not a positive number", value)
		}
		*to = n
		return true, nil
	}
	switch strings.ToLower(key) {
	case "replicas":
		return number(&p.spec.Replicas)
	case "mininsync":
		return number(&p.spec.MinInSync)
	case "logicalblocksize":
		return number(&p.spec.LogicalBlk)
	case "fstype":
		p.spec.FSType = strings.ToLower(value)
		if p.spec.FSType != "xfs" && p.spec.FSType != "ext4" {
			return true, fmt.Errorf("the filesystem %q is not supported; ask for xfs or ext4", value)
		}
	case "locality":
		p.spec.Locality = holdfast.Locality(strings.ToLower(value))
		if l := p.spec.Locality; l != holdfast.LocalityRequired && l != holdfast.LocalityPreferred && l != holdfast.LocalityNone {
			return true, fmt.Errorf("the locality %q is unknown; ask for required, preferred or none", value)
		}
	case "iotimeout":
		d, err := time.ParseDuration(value)
		if err != nil || d != 0 && d < holdfast.MinIOTimeout || d > holdfast.MaxIOTimeout {
			return true, fmt.Errorf("%q is not possible; ask for %v to %v, such as 30s, or 0: I/O waits without limit", value, holdfast.MinIOTimeout, holdfast.MaxIOTimeout)
		}
		p.spec.IOTimeoutMillis = d.Milliseconds()
	case "slowreplicas":
		if p.spec.SlowReplicas = holdfast.SlowPolicy(strings.ToLower(value)); !p.spec.SlowReplicas.Known() {
			return true, fmt.Errorf("the policy %q is unknown; ask for off, report or drop", value)
		}
	case "iops", "bandwidth", "burst":
		return true, p.limit(strings.ToLower(key), value)
	case "racks", "rack":
		p.spec.Racks = list(value)
	case "zones", "zone":
		p.spec.Zones = list(value)
	default:
		return false, nil
	}
	return true, nil
}

// limit reads one of the parameters about limits of I/O.
func (p *params) limit(key, value string) error {
	l := &p.spec.Limits
	switch key {
	case "iops":
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n != 0 && n < holdfast.MinIOPS || n > holdfast.MaxIOPS {
			return fmt.Errorf("%q is not possible; ask for %d to %d operations a second, or 0: no limit", value, holdfast.MinIOPS, holdfast.MaxIOPS)
		}
		l.IOPS = n
	case "bandwidth":
		n, err := quantity(value)
		if err != nil || n != 0 && n < holdfast.MinBandwidth || n > holdfast.MaxBandwidth {
			return fmt.Errorf("%q is not possible; ask for 1Mi to 1Ti bytes a second, such as 100Mi, or 0: no limit", value)
		}
		l.Bandwidth = n
	default:
		d, err := time.ParseDuration(value)
		if err != nil || d != 0 && d < time.Millisecond || d > holdfast.MaxBurst {
			return fmt.Errorf("%q is not possible; ask for 1ms to %v, such as 10s, or 0: %v", value, holdfast.MaxBurst, holdfast.DefaultBurst)
		}
		l.BurstMillis = d.Milliseconds()
	}
	return nil
}

// quantity reads a number of bytes: 104857600, 100Mi or 100MiB. Units without an i
// are refused: they mean powers of ten to some and of two to others.
func quantity(value string) (int64, error) {
	number := strings.TrimRight(value, "KMGTiB")
	exponent, known := map[string]int{"": 0, "Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4}[strings.TrimSuffix(value[len(number):], "B")]
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || !known || n > holdfast.MaxBandwidth>>(10*exponent) {
		return 0, strconv.ErrSyntax
	}
	return n << (10 * exponent), nil
}

// differs says in which parameter a volume is not what was asked for; "" in none.
func (p params) differs(have holdfast.Spec) string {
	want := p.spec
	for _, x := range []struct {
		name       string
		given      bool
		have, want any
	}{
		{"replicas", want.Replicas != 0, have.Replicas, want.Replicas},
		{"minInSync", want.MinInSync != 0, have.MinInSync, want.MinInSync},
		{"logicalBlockSize", want.LogicalBlk != 0, have.LogicalBlk, want.LogicalBlk},
		{"fsType", want.FSType != "", have.FSType, want.FSType},
		{"locality", want.Locality != "", have.Locality, want.Locality},
		{"racks", len(want.Racks) > 0, fmt.Sprint(have.Racks), fmt.Sprint(want.Racks)},
		{"zones", len(want.Zones) > 0, fmt.Sprint(have.Zones), fmt.Sprint(want.Zones)},
	} {
		if x.given && x.have != x.want {
			return fmt.Sprintf("the volume has %s %v, not %v", x.name, x.have, x.want)
		}
	}
	return ""
}
