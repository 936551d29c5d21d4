package kaniko

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const capabilityXattr = "security.capability"

// Compares "/" with how it was: by attributes and by every byte, never by size or inode.
type snapshotter struct {
	ignored *ignoreList
	known   map[string]string
	started bool
}

func newSnapshotter(ignored *ignoreList) *snapshotter {
	return &snapshotter{ignored: ignored, known: map[string]string{}}
}

// The system as it is before the first RUN.
func (s *snapshotter) init() error {
	if s.started {
		return nil
	}
	s.started = true
	_, _, err := s.scan()
	return err
}

// A layer of all that changed since the last snapshot. Its path.
func (s *snapshotter) everything() (string, error) {
	changed, gone, err := s.scan()
	if err != nil {
		return "", err
	}
	return s.write(changed, gone)
}

// A layer of these paths, whether changed or not, and of the directories above them.
func (s *snapshotter) only(paths []string) (string, error) {
	paths, err := s.complete(paths)
	if err != nil {
		return "", err
	}
	for _, path := range paths {
		if s.known[path], err = s.fingerprint(path); err != nil {
			return "", err
		}
	}
	return s.write(paths, nil)
}

func (s *snapshotter) scan() (changed, gone []string, err error) {
	// Modification times may lag behind until this.
	top, err := os.Open("/")
	if err != nil {
		return nil, nil, err
	}
	defer top.Close()
	if err := unix.Syncfs(int(top.Fd())); err != nil {
		return nil, nil, err
	}
	missing := maps.Clone(s.known)
	now := map[string]string{}
	err = fs.WalkDir(noAtime{}, "/", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if s.ignored.names(path) {
			if entry.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		delete(missing, path)
		if now[path], err = s.fingerprint(path); err == nil && now[path] != s.known[path] {
			changed = append(changed, path)
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	if changed, err = s.complete(changed); err != nil {
		return nil, nil, err
	}
	changed = slices.DeleteFunc(changed, s.ignored.covers)
	for _, path := range changed {
		if now[path] == "" {
			if now[path], err = s.fingerprint(path); err != nil {
				return nil, nil, err
			}
		}
		s.known[path] = now[path]
	}
	for path := range missing {
		delete(s.known, path)
		// One whiteout hides what was below it too.
		if _, above := missing[filepath.Dir(path)]; !above {
			gone = append(gone, path)
		}
	}
	slices.Sort(gone)
	return changed, gone, nil
}

// The paths, or the symlink that leads to them; where they are when symlinks are followed; and every
// directory above; sorted.
func (s *snapshotter) complete(paths []string) ([]string, error) {
	all := map[string]bool{}
	add := func(path string) {
		for !all[path] {
			all[path] = true
			path = filepath.Dir(path)
		}
	}
	for _, path := range paths {
		if s.ignored.names(path) {
			continue
		}
		path = filepath.Clean(path)
		if _, err := os.Lstat(path); err != nil {
			continue
		}
		add(firstLink(path))
		target, err := filepath.EvalSymlinks(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		if !s.ignored.covers(target) {
			add(target)
		}
	}
	return slices.Sorted(maps.Keys(all)), nil
}

// The first symlink on the way to the path, else the path itself.
func firstLink(path string) string {
	for end := 1; end < len(path); end++ {
		if path[end] != '/' {
			continue
		}
		if info, err := os.Lstat(path[:end]); err == nil && info.Mode()&fs.ModeSymlink != 0 {
			return path[:end]
		}
	}
	return path
}

// Reads without changing access times.
type noAtime struct{}

func (noAtime) Open(path string) (fs.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_NOATIME, 0)
}

// Attributes and every byte, read in pieces of 32 KiB.
func (s *snapshotter) fingerprint(path string) (string, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return "", err
	}
	stat := info.Sys().(*syscall.Stat_t)
	sum := sha256.New()
	fmt.Fprintf(sum, "%s %s %d:%d ", info.Mode(), info.ModTime(), stat.Uid, stat.Gid)
	switch {
	case info.Mode().IsRegular():
		// A failure here shows when the layer is written.
		capability, _ := capabilityOf(path)
		sum.Write(capability)
		file, err := noAtime{}.Open(path)
		if err != nil {
			return "", err
		}
		defer file.Close()
		if _, err := io.Copy(sum, file); err != nil {
			return "", err
		}
	case info.Mode()&fs.ModeSymlink != 0:
		link, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		io.WriteString(sum, link)
	}
	return string(sum.Sum(nil)), nil
}

func capabilityOf(path string) ([]byte, error) {
	value := make([]byte, 128)
	n, err := unix.Lgetxattr(path, capabilityXattr, value)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("failed to read %q attribute from %q: %w", capabilityXattr, path, err)
	}
	return value[:n], nil
}

// One layer on its way into a file.
type layer struct {
	writer *tar.Writer
	done   map[string]bool
	links  map[uint64]string
}

func (s *snapshotter) write(changed, gone []string) (string, error) {
	dir := kanikoDir() + "/layers/"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	file, err := os.CreateTemp(dir, "")
	if err != nil {
		return "", err
	}
	defer file.Close()
	l := &layer{tar.NewWriter(file), map[string]bool{"/": true}, map[uint64]string{}}
	for _, path := range gone {
		if err := l.whiteout(path); err != nil {
			return "", err
		}
	}
	for _, path := range changed {
		if err := l.add(path); err != nil {
			return "", err
		}
	}
	if err := l.writer.Close(); err != nil {
		return "", err
	}
	return file.Name(), file.Close()
}

func (l *layer) whiteout(path string) error {
	for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
		info, err := os.Lstat(dir)
		if err != nil {
			return err
		}
		// What took the directory's place hides the path already.
		if !info.IsDir() {
			return nil
		}
	}
	if err := l.add(filepath.Dir(path)); err != nil {
		return err
	}
	name := strings.TrimPrefix(filepath.Join(filepath.Dir(path), ".wh."+filepath.Base(path)), "/")
	return l.writer.WriteHeader(&tar.Header{Name: name})
}

// The path, after the directories above it, each once.
func (l *layer) add(path string) error {
	if l.done[path] {
		return nil
	}
	if err := l.add(filepath.Dir(path)); err != nil {
		return err
	}
	l.done[path] = true
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSocket != 0 {
		return nil
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(path); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	header.Name = strings.TrimPrefix(path, "/")
	if info.IsDir() {
		header.Name += "/"
	}
	header.Uname, header.Gname, header.Format = "", "", tar.FormatPAX
	capability, err := capabilityOf(path)
	if err != nil {
		return err
	}
	if capability != nil {
		header.PAXRecords = map[string]string{"SCHILY.xattr." + capabilityXattr: string(capability)}
	}
	if stat := info.Sys().(*syscall.Stat_t); stat.Nlink > 1 {
		if first, ok := l.links[stat.Ino]; ok {
			header.Typeflag, header.Linkname, header.Size = tar.TypeLink, strings.TrimPrefix(first, "/"), 0
		} else {
			l.links[stat.Ino] = path
		}
	}
	if err := l.writer.WriteHeader(header); err != nil {
		return err
	}
	if header.Typeflag != tar.TypeReg {
		return nil
	}
	file, err := noAtime{}.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(l.writer, file)
	return err
}
