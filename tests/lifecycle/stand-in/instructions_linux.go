package kaniko

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/platforms"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/sys/signal"

	"github.com/buildpacks/lifecycle/internal/extend"
)

// ARGs: `given` from outside win, then the instruction's own value, then the one before FROM, then
// what is known about the platform.
type buildArgs struct {
	given, known map[string]string
	meta         map[string]*string
	declared     map[string]*string
}

func newBuildArgs(given []extend.Arg, meta []instructions.ArgCommand) (*buildArgs, error) {
	platform := platforms.Normalize(platforms.DefaultSpec())
	known := map[string]string{"TARGETSTAGE": "default"}
	for _, prefix := range []string{"BUILD", "TARGET"} {
		known[prefix+"PLATFORM"] = platforms.Format(platform)
		known[prefix+"OS"] = platform.OS
		known[prefix+"OSVERSION"] = platform.OSVersion
		known[prefix+"ARCH"] = platform.Architecture
		known[prefix+"VARIANT"] = platform.Variant
	}
	a := &buildArgs{given: map[string]string{}, known: known, meta: map[string]*string{}, declared: map[string]*string{}}
	var outside, before []string
	for _, arg := range given {
		a.given[arg.Name] = arg.Value
		outside = append(outside, arg.Name+"="+arg.Value)
	}
	for _, command := range meta {
		for _, arg := range command.Args {
			if arg.Value != nil {
				value, err := expand(*arg.Value, slices.Concat(before, outside))
				if err != nil {
					return nil, err
				}
				before = append(before, arg.Key+"="+value)
				arg.Value = &value
			}
			a.meta[arg.Key] = arg.Value
		}
	}
	return a, nil
}

func (a *buildArgs) clone() *buildArgs {
	return &buildArgs{given: a.given, known: a.known, meta: a.meta, declared: maps.Clone(a.declared)}
}

func (a *buildArgs) value(key string, from map[string]*string) (string, bool) {
	if value, ok := a.given[key]; ok {
		return value, true
	}
	own, declared := from[key]
	if own != nil {
		return *own, true
	}
	if value := a.meta[key]; value != nil {
		return *value, true
	}
	value, ok := a.known[key]
	return value, ok && declared
}

func (a *buildArgs) declare(key string, value *string) {
	for _, from := range []map[string]*string{a.declared, a.meta} {
		if _, ok := from[key]; ok && value == nil {
			if inherited, ok := a.value(key, from); ok {
				value = &inherited
			}
		}
	}
	a.declared[key] = value
}

// The environment for substitution and for RUN: the image's, then the ARGs that are in force.
func (b *build) environment() []string {
	merged := map[string]string{}
	for _, entry := range b.config.Env {
		key, value, _ := strings.Cut(entry, "=")
		merged[key] = value
	}
	for _, key := range []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"} {
		for _, key := range []string{key, strings.ToLower(key)} {
			if value, ok := b.args.given[key]; ok {
				merged[key] = value
			}
		}
	}
	for key := range b.args.declared {
		if value, ok := b.args.value(key, b.args.declared); ok {
			merged[key] = value
		}
	}
	var result []string
	for _, key := range slices.Sorted(maps.Keys(merged)) {
		result = append(result, key+"="+merged[key])
	}
	return result
}

func expand(word string, environment []string) (string, error) {
	result, _, err := shell.NewLex(parser.DefaultEscapeToken).ProcessWord(word, shell.EnvsFromSlice(environment))
	return result, err
}

func (b *build) expand(word string) (string, error) { return expand(word, b.environment()) }

// A path keeps its last slash, which tells a directory.
func (b *build) expandPath(word string) (string, error) {
	path, err := b.expand(word)
	clean := filepath.Clean(path)
	if strings.HasSuffix(path, "/") && clean != "/" {
		clean += "/"
	}
	return clean, err
}

// Instructions that change the configuration and nothing else.
func (b *build) configure(command instructions.Command) (err error) {
	expanded := func(word string) string {
		result, failure := b.expand(word)
		if failure != nil && err == nil {
			err = failure
		}
		return result
	}
	switch c := command.(type) {
	case *instructions.ArgCommand:
		for _, arg := range c.Args {
			if arg.Value != nil {
				value := expanded(*arg.Value)
				arg.Value = &value
			}
			b.args.declare(expanded(arg.Key), arg.Value)
		}
	case *instructions.EnvCommand:
		var pairs []instructions.KeyValuePair
		for _, pair := range c.Env {
			pairs = append(pairs, instructions.KeyValuePair{Key: expanded(pair.Key), Value: expanded(pair.Value)})
		}
		for i, pair := range pairs {
			b.setEnv(pair.Key, pair.Value)
			delete(b.args.declared, c.Env[i].Key)
		}
	case *instructions.LabelCommand:
		if b.config.Labels == nil {
			b.config.Labels = map[string]string{}
		}
		for i, pair := range c.Labels {
			// Written back, and so expanded once more after the rehearsal, as kaniko does: quotes do
			// not protect a label.
			c.Labels[i] = instructions.KeyValuePair{Key: expanded(pair.Key), Value: expanded(pair.Value)}
			b.config.Labels[c.Labels[i].Key] = c.Labels[i].Value
		}
	case *instructions.UserCommand:
		name, group, grouped := strings.Cut(c.User, ":")
		if b.config.User = expanded(name); grouped {
			b.config.User += ":" + expanded(group)
		}
	case *instructions.ShellCommand:
		b.config.Shell = c.Shell
	case *instructions.CmdCommand:
		b.config.Cmd = b.commandLine(c.ShellDependantCmdLine)
		b.config.ArgsEscaped = false
	case *instructions.EntrypointCommand:
		b.config.Entrypoint = b.commandLine(c.ShellDependantCmdLine)
	case *instructions.StopSignalCommand:
		b.config.StopSignal = expanded(c.Signal)
		if err == nil {
			_, err = signal.ParseSignal(b.config.StopSignal)
		}
	case *instructions.ExposeCommand:
		if b.config.ExposedPorts == nil {
			b.config.ExposedPorts = map[string]struct{}{}
		}
		for _, port := range c.Ports {
			port = expanded(port)
			if !strings.Contains(port, "/") {
				port += "/tcp"
			}
			if _, protocol, _ := strings.Cut(port, "/"); protocol != "tcp" && protocol != "udp" {
				return fmt.Errorf("invalid protocol: %s", protocol)
			}
			b.config.ExposedPorts[port] = struct{}{}
		}
	case *instructions.VolumeCommand:
		if b.config.Volumes == nil {
			b.config.Volumes = map[string]struct{}{}
		}
		for _, volume := range c.Volumes {
			path, err := b.expandPath(volume)
			if err != nil {
				return err
			}
			b.config.Volumes[path] = struct{}{}
			b.ignored.add(path, true)
		}
	case *instructions.HealthCheckCommand:
		b.config.Healthcheck = &v1.HealthConfig{
			Test: c.Health.Test, Interval: c.Health.Interval, Timeout: c.Health.Timeout,
			StartPeriod: c.Health.StartPeriod, Retries: c.Health.Retries,
		}
	default:
		return fmt.Errorf("stand-in: %s is not supported", command.Name())
	}
	return err
}

func (b *build) setEnv(key, value string) {
	for i, entry := range b.config.Env {
		if present, _, _ := strings.Cut(entry, "="); present == key {
			b.config.Env[i] = key + "=" + value
			return
		}
	}
	b.config.Env = append(b.config.Env, key+"="+value)
}

func (b *build) shell() []string {
	if len(b.config.Shell) > 0 {
		return slices.Clone(b.config.Shell)
	}
	return []string{"/bin/sh", "-c"}
}

func (b *build) commandLine(line instructions.ShellDependantCmdLine) []string {
	if !line.PrependShell {
		return line.CmdLine
	}
	return append(b.shell(), strings.Join(line.CmdLine, " "))
}

func (b *build) workdir(c *instructions.WorkdirCommand) ([]string, error) {
	path, err := b.expandPath(c.Path)
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join("/", b.config.WorkingDir, path)
	}
	b.config.WorkingDir = path
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		return []string{}, nil
	}
	uid, gid, err := b.owner("")
	if err != nil {
		return nil, err
	}
	return []string{path}, makeDir(path, 0o755, uid, gid)
}

func (b *build) run(c *instructions.RunCommand) error {
	if len(c.FlagsUsed) > 0 {
		return fmt.Errorf("stand-in: RUN --%s is not supported", c.FlagsUsed[0])
	}
	environment := b.environment()
	line := slices.Clone(c.CmdLine)
	if c.PrependShell {
		script := strings.Join(line, " ")
		if len(c.Files) == 1 && script == "<<"+c.Files[0].Name {
			script += " sh"
		}
		for _, document := range c.Files {
			script += "\n" + document.Data + document.Name
		}
		line = append(b.shell(), script)
	} else if path, err := lookPath(line[0], environment); err == nil {
		line[0] = path
	}
	command := exec.Command(line[0], line[1:]...)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if _, err := os.Lstat(b.config.WorkingDir); err == nil {
		command.Dir = b.config.WorkingDir
	}
	// The group of USER is not honoured.
	name, _, _ := strings.Cut(b.config.User, ":")
	name, err := expand(name, environment)
	if err != nil {
		return err
	}
	home := "/root"
	if name != "" {
		if command.SysProcAttr.Credential, err = credential(name); err != nil {
			return fmt.Errorf("credentials: %w", err)
		}
		if found, _, err := lookUser(name); err == nil && name != "root" {
			home = found.HomeDir
		}
	}
	if !slices.ContainsFunc(environment, func(entry string) bool { return strings.HasPrefix(entry, "HOME=") }) {
		environment = append(environment, "HOME="+home)
	}
	command.Env = environment
	if err := command.Start(); err != nil {
		return fmt.Errorf("starting command: %w", err)
	}
	if err := command.Wait(); err != nil {
		return fmt.Errorf("waiting for process to exit: %w", err)
	}
	// What the command left running would change files behind our back.
	if err := syscall.Kill(-command.Process.Pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
		return err
	}
	return nil
}

func lookPath(program string, environment []string) (string, error) {
	for _, entry := range environment {
		if path, ok := strings.CutPrefix(entry, "PATH="); ok {
			before := os.Getenv("PATH")
			defer os.Setenv("PATH", before)
			if err := os.Setenv("PATH", path); err != nil {
				return "", err
			}
			return exec.LookPath(program)
		}
	}
	return "", exec.ErrNotFound
}
