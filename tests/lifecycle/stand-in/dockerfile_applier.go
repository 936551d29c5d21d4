// Package kaniko, as the layoutfs tests build it where the real kaniko cannot be had: a stand-in for
// the two files of the lifecycle that call kaniko. README.md says what it does and what it does not.
package kaniko

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

const root = "/kaniko"

// A DockerfileApplier applies one Dockerfile after another to an image, on the running system's "/".
type DockerfileApplier struct {
	workDir string
}

// NewDockerfileApplier needs a writable /kaniko.
func NewDockerfileApplier() (*DockerfileApplier, error) {
	dir, err := os.MkdirTemp(root, "work.dir")
	if err != nil {
		return nil, err
	}
	return &DockerfileApplier{workDir: dir}, nil
}

// ImageFor finds the image in /kaniko/cache/base/<digest>, where the platform has put it: no registry
// is ever asked.
func (a *DockerfileApplier) ImageFor(reference string) (v1.Image, error) {
	digest, err := name.NewDigest(reference)
	if err != nil {
		return nil, fmt.Errorf("failed to get digest for reference '%s': %w", reference, err)
	}
	image, err := baseImage(filepath.Join(root, "cache", "base", digest.DigestStr()), digest.DigestStr())
	if err != nil {
		return nil, fmt.Errorf("getting base image for digest '%s': %w", digest, err)
	}
	return image, nil
}

func baseImage(dir, digest string) (v1.Image, error) {
	hash, err := v1.NewHash(digest)
	if err != nil {
		return nil, err
	}
	path, err := layout.FromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("getting layout from path: %w", err)
	}
	return path.Image(hash)
}

// Cleanup removes what NewDockerfileApplier made.
func (a *DockerfileApplier) Cleanup() error {
	return os.RemoveAll(a.workDir)
}
