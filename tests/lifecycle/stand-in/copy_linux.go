package kaniko

import (
	"archive/tar"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cyphar/filepath-securejoin"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/tonistiigi/dchapes-mode"
)

// The directory that COPY and ADD take from, without what .dockerignore excludes.
type buildContext struct {
	dir      string
	excluded []string
	ignored  *ignoreList
}

func newBuildContext(dockerfile, dir string, ignored *ignoreList) (*buildContext, error) {
	context := &buildContext{dir: filepath.Clean(dir), ignored: ignored}
	for _, path := range []string{dockerfile + ".dockerignore", filepath.Join(dir, ".dockerignore")} {
		file, err := os.Open(path)
		if os.IsNotExist(err) {
			continue
		} else if err != nil {
			return nil, err
		}
		defer file.Close()
		context.excluded, err = ignorefile.ReadAll(file)
		return context, err
	}
	return context, nil
}

func (c *buildContext) excludes(path string) bool {
	relative, err := filepath.Rel(c.dir, path)
	if err != nil || strings.HasPrefix(relative, "..") {
		return false
	}
	match, err := patternmatcher.Matches(relative, c.excluded)
	return err == nil && match
}

// Everything at and below dir, relative to it, in lexical order.
func (c *buildContext) below(dir string) ([]string, error) {
	var found []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(dir, path)
		found = append(found, relative)
		return err
	})
	return found, err
}

// Sources relative to the context, wildcards resolved, and the destination.
func (b *build) sources(paths instructions.SourcesAndDest) ([]string, string, error) {
	if len(paths.SourceContents) > 0 {
		return nil, "", errors.New("stand-in: here-documents are not supported in COPY and ADD")
	}
	dest, err := b.expandPath(paths.DestPath)
	if err != nil {
		return nil, "", err
	}
	var patterns []string
	wild := false
	for _, source := range paths.SourcePaths {
		if source, err = b.expandPath(source); err != nil {
			return nil, "", err
		}
		if strings.Contains(source, "://") || strings.HasPrefix(source, "git@") {
			return nil, "", fmt.Errorf("stand-in: remote source %s is not supported", source)
		}
		patterns = append(patterns, source)
		wild = wild || strings.ContainsAny(source, "*?[")
	}
	sources := patterns
	if wild {
		if sources, err = b.context.match(patterns); err != nil {
			return nil, "", err
		}
	}
	if len(sources) == 1 {
		if info, err := os.Lstat(filepath.Join(b.context.dir, sources[0])); err != nil || info.IsDir() {
			return sources, dest, err
		}
	}
	files := 0
	for _, source := range sources {
		below, err := b.context.below(filepath.Join(b.context.dir, source))
		if err != nil {
			return nil, "", err
		}
		for _, path := range below {
			if !b.context.excludes(filepath.Join(b.context.dir, source, path)) {
				files++
			}
		}
	}
	if files > 1 && !isDir(dest) {
		return nil, "", errors.New("when specifying multiple sources in a COPY command, destination must be a directory and end in '/'")
	}
	return sources, dest, nil
}

func (c *buildContext) match(patterns []string) ([]string, error) {
	files, err := c.below(c.dir)
	if err != nil {
		return nil, err
	}
	var matched []string
	for _, pattern := range patterns {
		pattern = filepath.Clean(pattern)
		for _, file := range files {
			if filepath.IsAbs(pattern) {
				file = filepath.Join("/", file)
			}
			same, err := filepath.Match(pattern, file)
			if err != nil {
				return nil, err
			}
			if same {
				matched = append(matched, file)
			}
		}
	}
	return matched, nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	if err != nil {
		return strings.HasSuffix(path, "/") || path == "."
	}
	return info.IsDir()
}

// Where a source of this base name goes; an empty name is a directory, whose content goes there.
func (b *build) destination(name, dest string) string {
	path := dest
	if !filepath.IsAbs(dest) {
		path = filepath.Join("/", b.config.WorkingDir, dest)
		if strings.HasSuffix(dest, "/") || strings.HasSuffix(dest, ".") {
			path += "/"
		}
	}
	if isDir(path) {
		path = filepath.Join(path, name)
	}
	if name == "" && !strings.HasSuffix(path, "/") {
		path += "/"
	}
	return path
}

// Symlinks on the way are followed; the last name is not, so that it is replaced, unless a slash says
// that it is a directory.
func resolve(path string) (string, error) {
	rest := ""
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		path, rest = filepath.Dir(path), filepath.Base(path)
	}
	for path != "/" {
		_, err := os.Lstat(path)
		if err == nil {
			real, err := filepath.EvalSymlinks(path)
			return filepath.Join(real, rest), err
		}
		if !os.IsNotExist(err) {
			return "", fmt.Errorf("failed to lstat: %w", err)
		}
		dir, name := filepath.Split(path)
		path, rest = filepath.Clean(dir), filepath.Join(name, rest)
	}
	return filepath.Join("/", rest), nil
}

// Numbers of the owner of what is copied: --chown, else USER, else ours.
func (b *build) owner(chown string) (int, int, error) {
	for _, text := range []string{chown, b.config.User} {
		text, err := b.expand(text)
		if err != nil {
			return 0, 0, err
		}
		if text != "" {
			return owner(text)
		}
	}
	return os.Getuid(), os.Getgid(), nil
}

// Owner and permissions of what one instruction copies.
type attributes struct {
	uid, gid int
	chmod    func(os.FileMode) os.FileMode
	forced   bool
}

func (b *build) copy(paths instructions.SourcesAndDest, from, chown, chmod string) ([]string, error) {
	if from != "" {
		return nil, errors.New("stand-in: COPY --from is not supported")
	}
	attributes := attributes{chmod: func(mode os.FileMode) os.FileMode { return mode }, forced: chmod != ""}
	var err error
	if attributes.uid, attributes.gid, err = b.owner(chown); err != nil {
		return nil, err
	}
	if chmod != "" {
		text, err := b.expand(chmod)
		if err != nil {
			return nil, err
		}
		set, err := mode.ParseWithUmask(text, 0)
		if err != nil {
			return nil, fmt.Errorf("parsing value from chmod: %w", err)
		}
		attributes.chmod = set.Apply
	}
	sources, dest, err := b.sources(paths)
	if err != nil {
		return nil, err
	}
	var copied []string
	for _, source := range sources {
		path := filepath.Join(b.context.dir, source)
		info, err := os.Lstat(path)
		if err != nil {
			return nil, err
		}
		name := filepath.Base(path)
		if info.IsDir() {
			name = ""
		}
		target, err := resolve(b.destination(name, dest))
		if err != nil {
			return nil, err
		}
		if info.IsDir() {
			below, err := b.copyDir(path, target, attributes)
			if err != nil {
				return nil, err
			}
			copied = append(copied, below...)
			continue
		}
		done, err := b.copyNode(path, target, info, attributes)
		if err != nil {
			return nil, err
		}
		if done {
			copied = append(copied, target)
		}
	}
	return copied, nil
}

// What would go to an ignored path is left out, and nobody is told.
func (b *build) copyDir(source, target string, attributes attributes) ([]string, error) {
	names, err := b.context.below(source)
	if err != nil {
		return nil, err
	}
	type pair struct{ from, to string }
	var copied []string
	var timed []pair
	links := map[uint64]string{}
	for _, name := range names {
		from, to := filepath.Join(source, name), filepath.Join(target, name)
		if b.context.excludes(from) || b.ignored.covers(to) {
			continue
		}
		info, err := os.Lstat(from)
		if err != nil {
			return nil, err
		}
		stat := info.Sys().(*syscall.Stat_t)
		first, seen := links[stat.Ino]
		switch {
		case info.IsDir():
			permissions := info.Mode()
			if name == "." {
				permissions = 0o755
			}
			if err = makeDir(to, permissions, attributes.uid, attributes.gid); err == nil && attributes.forced && name != "." {
				err = os.Chmod(to, attributes.chmod(info.Mode()))
			}
			timed = append(timed, pair{from, to})
		case info.Mode().IsRegular() && stat.Nlink > 1 && seen:
			err = os.Link(first, to)
		default:
			if info.Mode().IsRegular() && stat.Nlink > 1 {
				links[stat.Ino] = to
			}
			_, err = b.copyNode(from, to, info, attributes)
		}
		if err != nil {
			return nil, err
		}
		copied = append(copied, to)
	}
	// Last, because what was made inside has changed them.
	for _, pair := range timed {
		if err := copyTime(pair.from, pair.to); err != nil {
			return nil, err
		}
	}
	return copied, nil
}

// A symlink or a file. False when it was excluded.
func (b *build) copyNode(source, target string, info fs.FileInfo, attributes attributes) (bool, error) {
	if b.context.excludes(source) {
		return false, nil
	}
	parentUID, parentGID := attributes.uid, attributes.gid
	if info.Mode()&fs.ModeSymlink != 0 {
		parentUID, parentGID = -1, -1
	}
	if err := makeParents(filepath.Dir(target), parentUID, parentGID); err != nil {
		return false, err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		if err := os.RemoveAll(target); err != nil {
			return false, err
		}
		link, err := os.Readlink(source)
		if err != nil {
			return false, err
		}
		return true, os.Symlink(link, target)
	}
	from, err := noAtime{}.Open(source)
	if err != nil {
		return false, err
	}
	defer from.Close()
	if err := writeFile(target, from, attributes.chmod(info.Mode()), attributes.uid, attributes.gid); err != nil {
		return false, err
	}
	if err := copyTime(source, target); err != nil {
		return false, err
	}
	capability, err := capabilityOf(source)
	if err != nil || capability == nil {
		return true, err
	}
	return true, syscall.Setxattr(target, capabilityXattr, capability, 0)
}

func writeFile(path string, from io.Reader, permissions os.FileMode, uid, gid int) error {
	to, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err = io.Copy(to, from); err != nil {
		to.Close()
		return err
	}
	if err := to.Close(); err != nil {
		return err
	}
	if err := os.Chown(path, uid, gid); err != nil {
		return err
	}
	// After chown, which takes setuid away.
	return os.Chmod(path, permissions)
}

func copyTime(source, target string) error {
	info, err := os.Lstat(source)
	if err != nil {
		return err
	}
	return os.Chtimes(target, time.Time{}, info.ModTime())
}

// The directory itself gets the owner, also when it was there before; parents that are made do not.
func makeDir(path string, permissions os.FileMode, uid, gid int) error {
	if info, err := os.Lstat(path); err == nil && !info.IsDir() {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	before := syscall.Umask(0)
	err := os.MkdirAll(path, permissions)
	syscall.Umask(before)
	if err != nil {
		return err
	}
	return os.Chown(path, uid, gid)
}

// Directories above a file: the missing ones, with the file's owner.
func makeParents(dir string, uid, gid int) error {
	info, err := os.Lstat(dir)
	switch {
	case err == nil && info.Mode()&fs.ModeSymlink != 0:
		return errors.New("destination cannot be a symlink")
	case err == nil:
		return nil
	case !os.IsNotExist(err):
		return err
	}
	if parent := filepath.Dir(dir); parent != dir {
		if _, err := os.Stat(parent); err != nil {
			if err := makeParents(parent, uid, gid); err != nil {
				return err
			}
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return os.Chown(dir, uid, gid)
}

// ADD unpacks archives and copies the rest.
func (b *build) add(c *instructions.AddCommand) ([]string, error) {
	sources, dest, err := b.sources(c.SourcesAndDest)
	if err != nil {
		return nil, err
	}
	var changed, rest []string
	for _, source := range sources {
		path := filepath.Join(b.context.dir, source)
		archive, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer archive.Close()
		content, err := archiveIn(archive)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", source, err)
		}
		if content == nil {
			rest = append(rest, source)
			continue
		}
		unpacked, err := b.unpack(content, b.destination("", dest))
		if err != nil {
			return nil, fmt.Errorf("unpacking local tar: %w", err)
		}
		changed = append(changed, unpacked...)
	}
	if len(rest) == 0 {
		return changed, nil
	}
	copied, err := b.copy(instructions.SourcesAndDest{SourcePaths: rest, DestPath: dest}, "", c.Chown, c.Chmod)
	return append(changed, copied...), err
}

// The tar in the file, nil when there is none.
func archiveIn(file *os.File) (io.Reader, error) {
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return nil, err
	}
	magic := make([]byte, 6)
	n, err := file.ReadAt(magic, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch text := string(magic[:n]); {
	case strings.HasPrefix(text, "\x1f\x8b\x08"):
		return gzip.NewReader(file)
	case strings.HasPrefix(text, "BZh"):
		return bzip2.NewReader(file), nil
	case text == "\xfd7zXZ\x00", strings.HasPrefix(text, "\x28\xb5\x2f\xfd"):
		return nil, errors.New("unsupported compression algorithm")
	}
	if _, err := tar.NewReader(file).Next(); err != nil {
		return nil, nil
	}
	_, err = file.Seek(0, io.SeekStart)
	return file, err
}

func (b *build) unpack(content io.Reader, dest string) ([]string, error) {
	var unpacked []string
	reader := tar.NewReader(content)
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return unpacked, nil
		}
		if err != nil {
			return nil, err
		}
		name := filepath.Clean(header.Name)
		if name == ".." || strings.HasPrefix(name, "../") {
			return nil, fmt.Errorf("tar entry %q is not allowed: references parent directory", header.Name)
		}
		dir, err := securejoin.SecureJoin(dest, filepath.Dir(name))
		if err != nil {
			return nil, err
		}
		path := filepath.Join(dir, filepath.Base(name))
		unpacked = append(unpacked, filepath.Join(dest, name))
		if b.ignored.covers(path) {
			continue
		}
		if err := unpackEntry(header, reader, dest, path); err != nil {
			return nil, err
		}
	}
}

func unpackEntry(header *tar.Header, content io.Reader, dest, path string) error {
	mode := header.FileInfo().Mode()
	if header.Typeflag == tar.TypeDir {
		if err := makeDir(path, mode, header.Uid, header.Gid); err != nil {
			return err
		}
		return os.Chmod(path, mode)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	switch header.Typeflag {
	case tar.TypeReg:
		if err := writeFile(path, content, mode, header.Uid, header.Gid); err != nil {
			return err
		}
		if capability, ok := header.PAXRecords["SCHILY.xattr."+capabilityXattr]; ok {
			if err := syscall.Setxattr(path, capabilityXattr, []byte(capability), 0); err != nil {
				return err
			}
		}
		return os.Chtimes(path, header.AccessTime, header.ModTime)
	case tar.TypeSymlink:
		return os.Symlink(header.Linkname, path)
	case tar.TypeLink:
		target, err := securejoin.SecureJoin(dest, header.Linkname)
		if err != nil {
			return err
		}
		return os.Link(target, path)
	}
	return nil
}
