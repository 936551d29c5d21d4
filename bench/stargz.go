// What the lazy start is compared with: eStargz layers by the library of stargz-snapshotter, and its
// store's mount of them. `cmd/stargz-store` is in a module of its own that the module proxy does not
// have, so this does what it does, with its defaults: disk caches, metadata in memory, prefetch of
// what the image marks, the rest in the background.
//
//	stargz convert LAYER FILES OUT     an eStargz layer; FILES, one a line, are wanted first
//	stargz store ROOT MOUNTPOINT       serves until it is interrupted; "ready" when it is mounted
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/fs/config"
	"github.com/containerd/stargz-snapshotter/metadata/memory"
	"github.com/containerd/stargz-snapshotter/service/resolver"
	"github.com/containerd/stargz-snapshotter/store"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "stargz:", err)
		os.Exit(1)
	}
}

// tarOf is the uncompressed layer.
func tarOf(layer string) *io.SectionReader {
	file, err := os.Open(layer)
	must(err)
	reader, err := gzip.NewReader(file)
	must(err)
	content, err := io.ReadAll(reader)
	must(err)
	return io.NewSectionReader(bytes.NewReader(content), 0, int64(len(content)))
}

func convert(layer, files, out string) {
	list, err := os.ReadFile(files)
	must(err)
	var missing []string
	blob, err := estargz.Build(tarOf(layer),
		estargz.WithPrioritizedFiles(strings.Fields(string(list))),
		estargz.WithAllowPrioritizeNotFound(&missing))
	must(err)
	file, err := os.Create(out)
	must(err)
	_, err = io.Copy(file, blob)
	must(err)
	must(blob.Close())
	must(file.Close())
	uncompressed, err := blob.UncompressedSize()
	must(err)
	must(json.NewEncoder(os.Stdout).Encode(map[string]any{
		"diff_id":      blob.DiffID(),
		"toc":          blob.TOCDigest(),
		"uncompressed": uncompressed,
	}))
}

func serve(root, mountpoint string) {
	settings := config.Config{NoPrometheus: true}
	// The default of the setting's TOML form.
	settings.DirectoryCacheConfig.Direct = true
	hosts := resolver.RegistryHostsFromConfig(resolver.Config{})
	layers, err := store.NewLayerManager(context.Background(), root, hosts, memory.NewReader, settings)
	must(err)
	must(store.Mount(context.Background(), mountpoint, layers, false))
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	fmt.Println("ready")
	<-interrupted
	must(syscall.Unmount(mountpoint, 0))
}

func main() {
	arguments := os.Args[1:]
	switch {
	case len(arguments) == 4 && arguments[0] == "convert":
		convert(arguments[1], arguments[2], arguments[3])
	case len(arguments) == 3 && arguments[0] == "store":
		serve(arguments[1], arguments[2])
	default:
		fmt.Fprintln(os.Stderr, "usage: stargz convert LAYER FILES OUT | stargz store ROOT MOUNTPOINT")
		os.Exit(2)
	}
}
