package sandbox

import (
	"testing"

	. "github.com/onsi/gomega"
)

func TestEnvironment(t *testing.T) {
	t.Parallel()
	g := NewWithT(t)
	list := []string{
		"PATH=/evil", "HTTPS_PROXY=http://p:1", "no_proxy=a,b", "LD_PRELOAD=/x", "HOME=/root", "DOCKER_CONFIG=/d",
		"AWS_SECRET_ACCESS_KEY=s", "GODEBUG=netdns=cgo", "TMPDIR=/t", "SSL_CERT_FILE=/c",
	}
	for _, place := range []Place{{}, {NetNS: "/ns"}} {
		g.Expect(Environment(list, place)).To(Equal([]string{"HTTPS_PROXY=http://p:1", "no_proxy=a,b"}))
		g.Expect(Environment(list, place, "HOME", "SSL_CERT_FILE")).To(
			Equal([]string{"HTTPS_PROXY=http://p:1", "no_proxy=a,b", "HOME=/root", "SSL_CERT_FILE=/c"}))
	}
}

func TestTheProxysPasswordStaysOutOfPods(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		"http://node:s3cret@proxy:3128": "http://proxy:3128", "node:s3cret@proxy:3128": "proxy:3128",
		"https://node@proxy": "https://proxy", "socks5://a:b@c@proxy:1/x": "socks5://proxy:1/x",
		"http://a:b/c@proxy": "http://proxy", "proxy:3128": "proxy:3128", "": "",
	} {
		for _, name := range []string{"HTTP_PROXY", "https_proxy"} {
			g := NewWithT(t)
			g.Expect(Environment([]string{name + "=" + value}, Place{NetNS: "/ns"})).To(Equal([]string{name + "=" + want}))
			g.Expect(Environment([]string{name + "=" + value}, Place{Cgroup: "/g"})).To(Equal([]string{name + "=" + value}))
		}
	}
}
