package vmtest

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/holdfast-storage/holdfast"
)

// Kernel is an unpacked kernel package.
type Kernel struct {
	Name    string // the suite it is from: "bookworm"
	Release string // "6.1.0-50-cloud-amd64"
	dir     string

	deps    map[string][]string // module's name: its file and those it needs, with the first to load last
	builtin map[string]bool
}

// OpenKernel reads what scripts/vm-kernels.sh put into dir/name.
func OpenKernel(dir, name string) (*Kernel, error) {
	k := &Kernel{Name: name, dir: filepath.Join(dir, name), deps: map[string][]string{}, builtin: map[string]bool{}}
	raw, err := os.ReadFile(filepath.Join(k.dir, "version"))
	if err != nil {
		return nil, holdfast.WrapKind("open the kernel "+name+" (run scripts/vm-kernels.sh)", holdfast.NotFound, err)
	}
	k.Release = strings.TrimSpace(string(raw))
	if err := k.lines("modules.dep", func(line string) {
		file, needs, _ := strings.Cut(line, ":")
		k.deps[moduleName(file)] = append([]string{file}, strings.Fields(needs)...)
	}); err != nil {
		return nil, err
	}
	return k, k.lines("modules.builtin", func(line string) { k.builtin[moduleName(line)] = true })
}

func (k *Kernel) modules() string { return filepath.Join(k.dir, "lib/modules", k.Release) }

func (k *Kernel) image() string { return filepath.Join(k.dir, "vmlinuz") }

func (k *Kernel) lines(name string, f func(string)) error {
	raw, err := os.ReadFile(filepath.Join(k.modules(), name))
	if err != nil {
		return holdfast.WrapKind("read about modules", holdfast.NotFound, err)
	}
	sc := bufio.NewScanner(bytes.NewReader(raw))
	for sc.Scan() {
		f(sc.Text())
	}
	return sc.Err()
}

// moduleName is "dm_crypt" for "kernel/drivers/md/dm-crypt.ko.xz".
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// Has says whether the kernel has the module, built in or to be loaded.
func (k *Kernel) Has(module string) bool {
	return k.builtin[module] || k.deps[module] != nil
}

// order lists the files to load for the modules and all they need, in order.
func (k *Kernel) order(modules []string) ([]string, error) {
	var files []string
	seen := map[string]bool{}
	for _, m := range modules {
		if k.builtin[m] {
			continue
		}
		needs := k.deps[m]
		if needs == nil {
			return nil, holdfast.E("load modules", holdfast.NotFound, fmt.Sprintf("Linux %s has no module %s", k.Release, m))
		}
		for i := len(needs) - 1; i >= 0; i-- {
			if !seen[needs[i]] {
				seen[needs[i]] = true
				files = append(files, needs[i])
			}
		}
	}
	return files, nil
}

// module gives the content of a module's file, ready for insmod.
func (k *Kernel) module(file string) ([]byte, error) {
	at := filepath.Join(k.modules(), file)
	if !strings.HasSuffix(file, ".xz") {
		return os.ReadFile(at)
	}
	out, err := exec.Command("xz", "-dc", at).Output()
	return out, holdfast.WrapKind("decompress "+at, holdfast.Other, err)
}
