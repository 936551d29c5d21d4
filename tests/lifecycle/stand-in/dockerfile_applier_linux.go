package kaniko

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/platforms"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/buildpacks/lifecycle/internal/extend"
	"github.com/buildpacks/lifecycle/log"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// One Dockerfile on its way.
type build struct {
	logger  log.Logger
	image   v1.Image
	config  v1.Config
	args    *buildArgs
	context *buildContext
	ignored *ignoreList
	shots   *snapshotter
}

// Apply runs the Dockerfile's instructions here, in the container of the image that is extended, and
// makes a layer of what each of them changed.
func (a *DockerfileApplier) Apply(dockerfile extend.Dockerfile, base v1.Image, options extend.Options, logger log.Logger) (v1.Image, error) {
	logger.Warnf("STAND-IN: %s is applied by the layoutfs tests' stand-in, not by kaniko", dockerfile.Path)
	if !inContainer() {
		return nil, errors.New("kaniko should only be run inside of a container")
	}
	if err := os.Chdir("/"); err != nil {
		return nil, err
	}
	digest, err := base.Digest()
	if err != nil {
		return nil, fmt.Errorf("failed to get digest: %w", err)
	}
	commands, meta, err := parse(dockerfile.Path)
	if err != nil {
		return nil, err
	}
	ignored, err := newIgnoreList(options.IgnorePaths)
	if err != nil {
		return nil, fmt.Errorf("failed to initialize ignore list: %w", err)
	}
	context, err := newBuildContext(dockerfile.Path, options.BuildContext, ignored)
	if err != nil {
		return nil, err
	}
	args, err := newBuildArgs(append(dockerfile.Args, extend.Arg{Name: "base_image", Value: "base@" + digest.String()}), meta)
	if err != nil {
		return nil, fmt.Errorf("expanding meta ARGs: %w", err)
	}
	file, err := base.ConfigFile()
	if err != nil {
		return nil, err
	}
	if len(file.Config.OnBuild) > 0 {
		return nil, errors.New("stand-in: base images with ONBUILD are not supported")
	}
	b := &build{
		logger: logger, image: withoutAnnotations(base), config: *file.Config.DeepCopy(),
		args: args, context: context, ignored: ignored, shots: newSnapshotter(ignored),
	}
	if b.config.Env == nil {
		b.config.Env = []string{defaultPath}
	}
	if err := b.rehearse(commands); err != nil {
		return nil, fmt.Errorf("failed to optimize instructions: %w", err)
	}
	for _, command := range commands {
		if err := b.perform(command); err != nil {
			return nil, fmt.Errorf("error building stage: %w", err)
		}
	}
	return b.finish(commands)
}

// The instructions of the only stage, and the ARGs before it.
func parse(path string) ([]instructions.Command, []instructions.ArgCommand, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("reading dockerfile at path %s: %w", path, err)
	}
	parsed, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, nil, fmt.Errorf("parsing dockerfile: %w", err)
	}
	stages, meta, err := instructions.Parse(parsed.AST, linter.New(&linter.Config{}))
	if err != nil {
		return nil, nil, fmt.Errorf("parsing dockerfile: %w", err)
	}
	// The name in FROM does not matter: the image is always the one that is extended.
	if len(stages) != 1 || stages[0].BaseName == "scratch" {
		return nil, nil, fmt.Errorf("stand-in: %s: exactly one FROM is supported, and not FROM scratch", path)
	}
	return stages[0].Commands, meta, nil
}

// What kaniko finds out while it looks for cached layers, before anything runs: missing sources, and
// volumes, which are ignored from the very start.
func (b *build) rehearse(commands []instructions.Command) error {
	trial := &build{config: *b.config.DeepCopy(), args: b.args.clone(), context: b.context, ignored: b.ignored}
	for _, command := range commands {
		var err error
		switch c := command.(type) {
		case *instructions.CopyCommand:
			_, _, err = trial.sources(c.SourcesAndDest)
		case *instructions.AddCommand:
			_, _, err = trial.sources(c.SourcesAndDest)
		case *instructions.RunCommand, *instructions.WorkdirCommand, *instructions.MaintainerCommand:
		default:
			err = trial.configure(command)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", textOf(command), err)
		}
	}
	return nil
}

// One instruction and its layer. Every instruction gets one, be it empty: that is what kaniko does
// when it has a layer cache.
func (b *build) perform(command instructions.Command) error {
	var changed []string
	var err error
	scan := false
	b.logger.Infof("%s", textOf(command))
	switch c := command.(type) {
	case *instructions.MaintainerCommand:
		return nil
	case *instructions.RunCommand:
		if err := b.shots.init(); err != nil {
			return err
		}
		err, scan = b.run(c), true
	case *instructions.CopyCommand:
		changed, err = b.copy(c.SourcesAndDest, c.From, c.Chown, c.Chmod)
		// Nothing was copied, so nobody knows what changed.
		scan = changed == nil
	case *instructions.AddCommand:
		changed, err = b.add(c)
		scan = changed == nil
	case *instructions.WorkdirCommand:
		changed, err = b.workdir(c)
	default:
		err = b.configure(command)
	}
	if err != nil {
		return fmt.Errorf("failed to execute command: %w", err)
	}
	path := ""
	if scan {
		path, err = b.shots.everything()
	} else {
		path, err = b.shots.only(changed)
	}
	if err != nil {
		return fmt.Errorf("failed to take snapshot: %w", err)
	}
	if err := b.append(path, textOf(command)); err != nil {
		return fmt.Errorf("failed to save snapshot to image: %w", err)
	}
	return nil
}

func textOf(command instructions.Command) string {
	if text, ok := command.(fmt.Stringer); ok {
		return text.String()
	}
	return command.Name()
}

// A layer that the image already has is taken from there, whatever its compression; its blob is then
// needed, also when it is one of the base.
func (b *build) append(path, createdBy string) error {
	mediaType, err := b.image.MediaType()
	if err != nil {
		return err
	}
	var options []tarball.LayerOption
	if strings.Contains(string(mediaType), types.OCIVendorPrefix) {
		options = append(options, tarball.WithMediaType(types.OCILayer))
	}
	layer, err := tarball.LayerFromFile(path, options...)
	if err != nil {
		return err
	}
	diffID, err := layer.DiffID()
	if err != nil {
		return err
	}
	if present, err := b.image.LayerByDiffID(diffID); err == nil {
		layer = present
	}
	b.image, err = mutate.Append(b.image, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Author: "kaniko", CreatedBy: createdBy},
	})
	return err
}

func (b *build) finish(commands []instructions.Command) (v1.Image, error) {
	// CMD of the base does not outlive a new ENTRYPOINT.
	entrypoint, cmd := false, false
	for _, command := range commands {
		switch command.(type) {
		case *instructions.EntrypointCommand:
			entrypoint = true
		case *instructions.CmdCommand:
			cmd = true
		}
	}
	if entrypoint && !cmd {
		b.config.Cmd = nil
	}
	image, err := mutate.Config(b.image, b.config)
	if err != nil {
		return nil, err
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, err
	}
	platform, err := v1.ParsePlatform(platforms.DefaultString())
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Variant, file.OSVersion = platform.OS, platform.Architecture, platform.Variant, platform.OSVersion
	file.Created = v1.Time{}
	return mutate.ConfigFile(image, file)
}

// The image without its manifest's annotations, which are the base's.
type plain struct{ v1.Image }

func withoutAnnotations(image v1.Image) v1.Image { return plain{image} }

func (p plain) Manifest() (*v1.Manifest, error) {
	manifest, err := p.Image.Manifest()
	if err != nil {
		return nil, err
	}
	manifest = manifest.DeepCopy()
	manifest.Annotations = nil
	return manifest, nil
}
