package bundlegen

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	. "github.com/onsi/gomega"
	imgspec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/husk-cri/husk/pkg/errdefs"
)

// adrRow is a row of the table in docs/adr/0014-user-resolution.md.
type adrRow struct {
	number, image, request, result string
}

// readADR returns the files and the rows of the decision.
func readADR(t *testing.T) (passwd, group string, rows []adrRow) {
	t.Helper()
	data, err := os.ReadFile("../docs/adr/0014-user-resolution.md")
	NewWithT(t).Expect(err).NotTo(HaveOccurred())
	text := string(data)
	block := func(name string) string {
		_, rest, _ := strings.Cut(text, "```"+name+"\n")
		content, _, _ := strings.Cut(rest, "```")
		return content
	}
	for line := range strings.Lines(text) {
		cells := strings.Split(line, "|")
		if len(cells) != 7 {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if _, err := strconv.Atoi(cells[1]); err == nil {
			rows = append(rows, adrRow{cells[1], cells[2], cells[3], cells[4]})
		}
	}
	return block("passwd"), block("group"), rows
}

// TestADR0014 does what each row of the decision says.
func TestADR0014(t *testing.T) {
	t.Parallel()
	passwd, group, rows := readADR(t)
	NewWithT(t).Expect(rows).To(HaveLen(30), "as long as the table is read")
	for i, row := range rows {
		t.Run(row.number, func(t *testing.T) {
			t.Parallel()
			g := NewWithT(t)
			g.Expect(row.number).To(Equal(strconv.Itoa(i + 1)))
			req, words := adrRequest(t, row.request)
			var got string
			switch {
			case words["no-lookup"]:
				got = adrSpec(t, row.image, req)
			case words["no-files"]:
				got = adrIdentity(t, row.image, req, t.TempDir())
			default:
				got = adrIdentity(t, row.image, req, rootfs(t, passwd, group))
			}
			g.Expect(got).To(Equal(row.result), "USER %q, %q", row.image, row.request)
		})
	}
}

// adrRequest reads the notation of the table's third column.
func adrRequest(t *testing.T, text string) (req Request, words map[string]bool) {
	t.Helper()
	g := NewWithT(t)
	words = map[string]bool{}
	number := func(s string) *int64 {
		id, err := strconv.ParseInt(s, 10, 64)
		g.Expect(err).NotTo(HaveOccurred(), text)
		return &id
	}
	for word := range strings.FieldsSeq(text) {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "user":
			req.RunAsUser = number(value)
		case "name":
			req.RunAsUsername = value
		case "group":
			req.RunAsGroup = number(value)
		case "groups":
			for id := range strings.SplitSeq(value, ",") {
				req.SupplementalGroups = append(req.SupplementalGroups, *number(id))
			}
		case "strict":
			req.GroupsPolicy = Strict
		case "no-files", "no-lookup":
			words[key] = true
		default:
			t.Fatalf("the table says %q", word)
		}
	}
	return req, words
}

// adrIdentity is the way of a container under Husk's shim: the host decides, the
// annotation travels, the sandbox resolves.
func adrIdentity(t *testing.T, image string, req Request, dir string) string {
	t.Helper()
	g := NewWithT(t)
	u, err := EffectiveUser(imgspec.ImageConfig{User: image}, req)
	if err != nil {
		return errdefs.KindOf(err).String()
	}
	annotation, err := EncodeUser(u)
	g.Expect(err).NotTo(HaveOccurred())
	u, err = ParseUser(annotation)
	g.Expect(err).NotTo(HaveOccurred())
	id, err := Resolve(dir, u)
	if err != nil {
		g.Expect(id).To(BeZero())
		return errdefs.KindOf(err).String()
	}
	return adrResult(id.UID, id.GID, id.Groups, id.Home)
}

// adrSpec is the way of a container under a handler that takes the ids as they come.
func adrSpec(t *testing.T, image string, req Request) string {
	t.Helper()
	rec, pulled := record(t, imgspec.ImageConfig{User: image})
	spec, err := Spec(rec, pulled, req, SpecOptions{})
	if err != nil {
		return errdefs.KindOf(err).String()
	}
	u := spec.Process.User
	return adrResult(u.UID, u.GID, u.AdditionalGids, "")
}

func adrResult(uid, gid uint32, groups []uint32, home string) string {
	return strings.TrimSpace(fmt.Sprintf("%d:%d, %s, %s", uid, gid, strings.Trim(fmt.Sprint(groups), "[]"), home))
}
