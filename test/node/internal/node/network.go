package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Each node has a bridge hsktN with the subnet 10.213.N.0/24. The bridge is the reservation: the kernel makes a
// name only once, whoever asks at the same time.
const (
	bridgePrefix  = "hskt"
	subnetPattern = "10.213.%d.0/24"
	subnets       = 254 // numbers 1 to 254
)

// registryPort is tried first; on a bridge address of its own it is nearly always free.
const registryPort = 5000

// makeNetwork makes a bridge with the first free number. Pods reach what listens on its address, by their own: there
// is no address translation, and no forwarding, so nothing of the machine's own setup is changed.
func makeNetwork(ctx context.Context) (Network, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return Network{}, fmt.Errorf("list addresses: %w", err)
	}
	for i := 1; i <= subnets; i++ {
		n := numbered(i)
		if used(addrs, netip.MustParsePrefix(n.Subnet)) {
			continue
		}
		// A fixed MAC: else the bridge takes that of a port, and CNI's check of pods starting together fails.
		n.Name = n.Bridge + "-" + strconv.FormatUint(uint64(rand.Uint32()), 16)
		err := ip(ctx, "link", "add", n.Bridge, "address", fmt.Sprintf("02:42:0a:d5:%02x:01", i), "type", "bridge")
		if errors.Is(err, errExists) {
			continue
		}
		if err != nil {
			return Network{}, err
		}
		err = errors.Join(ip(ctx, "link", "set", n.Bridge, "alias", n.Name), ip(ctx, "addr", "add", n.IP+"/24", "dev", n.Bridge), ip(ctx, "link", "set", n.Bridge, "up"))
		if err != nil {
			return Network{}, errors.Join(err, n.remove(ctx))
		}
		return n, nil
	}
	return Network{}, errors.New("no free bridge number")
}

func numbered(i int) Network {
	subnet := fmt.Sprintf(subnetPattern, i)
	return Network{
		Bridge: bridgePrefix + strconv.Itoa(i),
		IP:     netip.MustParsePrefix(subnet).Addr().Next().String(),
		Subnet: subnet,
	}
}

func used(addrs []net.Addr, p netip.Prefix) bool {
	for _, a := range addrs {
		other, err := netip.ParsePrefix(a.String())
		if err == nil && other.Overlaps(p) {
			return true
		}
	}
	return false
}

// remove deletes the bridge, unless it is gone and another node has made one of that number since: its alias says whose
// it is.
func (n Network) remove(ctx context.Context) error {
	if n.Bridge == "" {
		return nil
	}
	alias, err := os.ReadFile(filepath.Join("/sys/class/net", n.Bridge, "ifalias"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read alias of bridge: %w", err)
	}
	if owner := strings.TrimSpace(string(alias)); owner != "" && owner != n.Name {
		return nil
	}
	return ip(ctx, "link", "del", n.Bridge)
}

// listenAddress picks a port that is free on the bridge's address.
func (n Network) listenAddress(ctx context.Context, port int) (string, error) {
	var lc net.ListenConfig
	for _, p := range []int{port, 0} {
		l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(n.IP, strconv.Itoa(p)))
		if err != nil {
			continue
		}
		addr := l.Addr().String()
		if err := l.Close(); err != nil {
			return "", fmt.Errorf("probe port: %w", err)
		}
		return addr, nil
	}
	return "", fmt.Errorf("no free port on %s", n.IP)
}

// errExists says that the interface is there already.
var errExists = errors.New("exists")

func ip(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput()
	if err == nil {
		return nil
	}
	if strings.Contains(string(out), "File exists") {
		return fmt.Errorf("ip %s: %w", strings.Join(args, " "), errExists)
	}
	return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
}
