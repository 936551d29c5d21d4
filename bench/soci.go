// What the lazy start is compared with: SOCI's index of an image, and its snapshotter's mounts of it.
// The program around the snapshotter is in a module of its own that the module proxy does not have, and
// wants containerd to call it; this calls the same packages as both would, with the snapshotter's
// defaults; but layers below 10 MiB get a table of contents too, since without one they would be for
// containerd to unpack.
//
//	soci index LAYOUT REPOSITORY STATE   makes the index of the image in a layout, and pushes it; the
//	                                     last line printed is its digest
//	soci serve ROOT                      "ready", and then for each line of standard input, which
//	                                     describes an image, "mounted"; ends with its input
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/awslabs/soci-snapshotter/config"
	"github.com/awslabs/soci-snapshotter/fs"
	"github.com/awslabs/soci-snapshotter/fs/source"
	"github.com/awslabs/soci-snapshotter/metadata"
	"github.com/awslabs/soci-snapshotter/service"
	"github.com/awslabs/soci-snapshotter/soci"
	"github.com/awslabs/soci-snapshotter/soci/store"
	"github.com/awslabs/soci-snapshotter/ztoc"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"oras.land/oras-go/v2/registry/remote"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "soci:", err)
		os.Exit(1)
	}
}

// index makes SOCI's index of the only image of a layout, and pushes it.
func index(ctx context.Context, layout, repository, state string) {
	told, err := os.ReadFile(filepath.Join(layout, "index.json"))
	must(err)
	var listed ocispec.Index
	must(json.Unmarshal(told, &listed))
	contents, err := local.NewStore(layout)
	must(err)
	blobs, err := store.NewSociStore(filepath.Join(state, "content"))
	must(err)
	known, err := soci.NewDB(filepath.Join(state, "artifacts.db"))
	must(err)
	builder, err := soci.NewIndexBuilder(contents, blobs, soci.WithArtifactsDb(known), soci.WithMinLayerSize(0))
	must(err)
	built, err := builder.Build(ctx, images.Image{Name: "bench", Target: listed.Manifests[0]})
	must(err)
	push(ctx, blobs, repository, built)
	fmt.Println(built.Desc.Digest)
}

// push puts the index and what it names where the image is. Whoever mounts names it by its digest, so that
// nobody has to find it. What is read is closed when it is sent.
func push(ctx context.Context, blobs *store.SociStore, repository string, built *soci.IndexWithMetadata) {
	there, err := remote.NewRepository(repository)
	must(err)
	there.PlainHTTP = true
	must(there.SetReferrersCapability(true))
	for _, blob := range append(built.Index.Blobs, built.Index.Config) {
		content, err := blobs.Fetch(ctx, blob)
		must(err)
		must(there.Blobs().Push(ctx, blob, content))
	}
	content, err := blobs.Fetch(ctx, built.Desc)
	must(err)
	must(there.Manifests().Push(ctx, built.Desc, content))
}

// image is one to be mounted.
type image struct {
	Reference  string
	Manifest   string
	Index      string
	Layers     []ocispec.Descriptor
	DiffIDs    []digest.Digest `json:"diff_ids"`
	Mountpoint string
}

func snapshotter(ctx context.Context, root string) snapshots.Snapshotter {
	must(os.MkdirAll(root, 0o700))
	settings := config.NewConfig()
	settings.FSConfig.NoPrometheus = true
	// As the snapshotter's program opens it.
	db, err := bolt.Open(filepath.Join(root, "metadata.db"), 0o600, &bolt.Options{
		NoFreelistSync:  true,
		InitialMmapSize: 64 << 20,
		FreelistType:    bolt.FreelistMapType,
	})
	must(err)
	files := func(blob *io.SectionReader, toc ztoc.TOC, options ...metadata.Option) (metadata.Reader, error) {
		return metadata.NewReader(db, blob, toc, options...)
	}
	made, err := service.NewSociSnapshotterService(ctx, root, &settings.ServiceConfig,
		service.WithFilesystemOptions(fs.WithMetadataStore(files)))
	must(err)
	return made
}

// mountImage does what containerd does to pull an image and to look at it.
func mountImage(ctx context.Context, layers snapshots.Snapshotter, wanted image) {
	parent := ""
	for number, layer := range wanted.Layers {
		name := identity.ChainID(wanted.DiffIDs[:number+1]).String()
		_, err := layers.Prepare(ctx, "prepare "+name, parent, snapshots.WithLabels(map[string]string{
			"containerd.io/snapshot.ref":           name,
			snapshotters.TargetRefLabel:            wanted.Reference,
			snapshotters.TargetManifestDigestLabel: wanted.Manifest,
			snapshotters.TargetLayerDigestLabel:    layer.Digest.String(),
			source.TargetSizeLabel:                 strconv.FormatInt(layer.Size, 10),
			source.TargetSociIndexDigestLabel:      wanted.Index,
		}))
		if err == nil {
			err = errors.New("it is left to containerd to unpack")
		}
		// It was prepared, and needs nobody to unpack it.
		if !errdefs.IsAlreadyExists(err) {
			must(fmt.Errorf("layer %d is not prepared: %w", number, err))
		}
		parent = name
	}
	mounts, err := layers.View(ctx, "view "+parent, parent)
	must(err)
	must(mount.All(mounts, wanted.Mountpoint))
}

func serve(ctx context.Context, root string) {
	layers := snapshotter(ctx, root)
	fmt.Println("ready")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var wanted image
		must(json.Unmarshal(lines.Bytes(), &wanted))
		mountImage(ctx, layers, wanted)
		fmt.Println("mounted")
	}
	must(lines.Err())
	must(layers.Close())
}

func main() {
	ctx := namespaces.WithNamespace(context.Background(), "bench")
	switch {
	case len(os.Args) == 5 && os.Args[1] == "index":
		index(ctx, os.Args[2], os.Args[3], os.Args[4])
	case len(os.Args) == 3 && os.Args[1] == "serve":
		serve(ctx, os.Args[2])
	default:
		must(fmt.Errorf("index LAYOUT REPOSITORY STATE, or serve ROOT"))
	}
}
