package kaniko

import (
	"bufio"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

var runtimes = []string{
	"docker", "rkt", "systemd-nspawn", "lxc", "openvz", "kube", "garden", "podman", "gvisor", "firejail", "wsl",
}

// Whether this looks like a container, from outside of which "/" had better not be changed.
func inContainer() bool {
	for _, path := range []string{
		"/run/.containerenv", "/.dockerenv", "/var/run/secrets/kubernetes.io/serviceaccount", "/__runsc_containers__",
	} {
		if _, err := os.Stat(path); err == nil {
			return true
		}
	}
	hints := []string{os.Getenv("container")}
	for _, path := range []string{"/proc/self/cgroup", "/proc/1/cmdline", "/run/systemd/container"} {
		if text, err := os.ReadFile(path); err == nil {
			hints = append(hints, string(text))
		}
	}
	for _, hint := range hints {
		if slices.ContainsFunc(runtimes, func(name string) bool { return strings.Contains(hint, name) }) {
			return true
		}
	}
	mounts, err := os.ReadFile("/proc/mounts")
	return err == nil && regexp.MustCompile(`^[^ ]+ / overlay`).Match(mounts)
}

// Paths that no snapshot looks at. A trailing path makes `below` true: not the path itself, but what
// is below it.
type ignoredPath struct {
	parts []string
	below bool
}

type ignoreList struct{ paths []ignoredPath }

func newIgnoreList(more []string) (*ignoreList, error) {
	list := &ignoreList{}
	for _, path := range append([]string{kanikoDir(), "/etc/mtab", "/var/run"}, more...) {
		list.add(path, false)
	}
	list.add("/tmp/apt-key-gpghome", true)
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer mounts.Close()
	lines := bufio.NewScanner(mounts)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if fields := strings.Split(lines.Text(), " "); len(fields) >= 5 && fields[4] != "/" {
			list.add(fields[4], false)
		}
	}
	return list, lines.Err()
}

// Where kaniko keeps its files: KANIKO_DIR, else beside the program.
func kanikoDir() string {
	if dir, ok := os.LookupEnv("KANIKO_DIR"); ok {
		return dir
	}
	program, err := os.Executable()
	if err != nil {
		return root
	}
	return filepath.Dir(program)
}

func (l *ignoreList) add(path string, below bool) {
	l.paths = append(l.paths, ignoredPath{strings.Split(filepath.Clean(path), "/"), below})
}

// Whether the path is in the list itself.
func (l *ignoreList) names(path string) bool {
	return slices.ContainsFunc(l.paths, func(ignored ignoredPath) bool {
		return !ignored.below && strings.Join(ignored.parts, "/") == filepath.Clean(path)
	})
}

// Whether the path is in the list, or below one that is.
func (l *ignoreList) covers(path string) bool {
	parts := strings.Split(filepath.Clean(path), "/")
	return slices.ContainsFunc(l.paths, func(ignored ignoredPath) bool {
		if len(parts) < len(ignored.parts) || ignored.below && len(parts) == len(ignored.parts) {
			return false
		}
		for i, part := range ignored.parts {
			if same, err := filepath.Match(part, parts[i]); err != nil || !same {
				return false
			}
		}
		return true
	})
}

// A user by name, else by number, else a number that nobody has.
func lookUser(name string) (*user.User, uint32, error) {
	found, err := user.Lookup(name)
	if err != nil {
		if found, err = user.LookupId(name); err != nil {
			found = &user.User{Uid: name, HomeDir: "/"}
		}
	}
	uid, err := strconv.ParseUint(found.Uid, 10, 32)
	return found, uint32(uid), err
}

// "user" or "user:group" to numbers. Without a group it is the user's number once more.
func owner(text string) (int, int, error) {
	name, group, _ := strings.Cut(text, ":")
	_, uid, err := lookUser(name)
	if err != nil {
		return 0, 0, err
	}
	if group == "" {
		return int(uid), int(uid), nil
	}
	if found, err := user.LookupGroup(group); err == nil {
		group = found.Gid
	}
	gid, err := strconv.ParseUint(group, 10, 32)
	return int(uid), int(gid), err
}

// The process's user, group from passwd, and supplementary groups from the group file.
func credential(name string) (*syscall.Credential, error) {
	found, uid, err := lookUser(name)
	if err != nil {
		return nil, err
	}
	// The user by number: the first one of several.
	if first, err := user.LookupId(found.Uid); err == nil {
		found = first
	}
	result := &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{}}
	if found.Gid == "" {
		return result, nil
	}
	gid, err := strconv.ParseUint(found.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	result.Gid = uint32(gid)
	result.Groups = append(result.Groups, result.Gid)
	text, err := os.ReadFile("/etc/group")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 4)
		if len(fields) < 4 || !slices.Contains(strings.Split(fields[3], ","), found.Username) {
			continue
		}
		if gid, err := strconv.ParseUint(fields[2], 10, 32); err == nil {
			result.Groups = append(result.Groups, uint32(gid))
		}
	}
	return result, nil
}
