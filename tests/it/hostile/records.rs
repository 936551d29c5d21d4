//! Extension headers: of a hundred megabytes, with lengths that lie, without an end; and sparse maps.

use super::{MEMORY_BYTES_MAX, Scene, assert_within, layer_refused, one_layer};
use crate::support::image::ImageBuilder;
use crate::support::layer::{Compression, LayerBuilder, Member, fix_checksum, header};

const LARGE_BYTES: usize = 100 << 20;

/// A member of old GNU's sparse type, whose map is these pieces.
fn old_gnu(size: u64, stored: u64, pieces: &[(u64, u64)]) -> Vec<u8> {
    let mut record =
        header(&Member { declared_bytes: Some(stored), ..Member::new(b'S', "f", 0o644) });
    record[257..265].copy_from_slice(b"ustar  \0");
    record[345..512].fill(0);
    let octal = |n: u64| format!("{n:011o}\0").into_bytes();
    record[483..495].copy_from_slice(&octal(size));
    let entry = |(at, len): &(u64, u64)| [octal(*at), octal(*len)].concat();
    let (own, others) = pieces.split_at(pieces.len().min(4));
    let fill = |place: &mut [u8], pieces: &[(u64, u64)]| {
        let bytes: Vec<u8> = pieces.iter().flat_map(entry).collect();
        place[..bytes.len()].copy_from_slice(&bytes);
    };
    fill(&mut record[386..], own);
    record[482] = u8::from(!others.is_empty());
    fix_checksum(&mut record);
    let mut tar = record.to_vec();
    let mut rest = others;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(rest.len().min(21));
        let mut further = [0; 512];
        fill(&mut further, now);
        further[504] = u8::from(!later.is_empty());
        tar.extend_from_slice(&further);
        rest = later;
    }
    tar
}

#[test]
fn extension_headers_of_a_hundred_megabytes_are_refused() {
    for kind in [b'x', b'g', b'L', b'K'] {
        let content = vec![b'x'; LARGE_BYTES];
        let before = LayerBuilder::new().file("before", 0o644, "");
        let at = before.position();
        let tar = before.member(Member { kind, ..Member::file("large", 0o644, content) }).tar();
        let words = ["an extended header of 104857600 bytes: at most 1048576"];
        layer_refused(&tar, Compression::Zstd, at, &words);
    }
    // What the header says is enough: there need not be so much.
    let claimed = Member { kind: b'x', ..Member::file("claimed", 0o644, "") };
    let claimed = Member { declared_bytes: Some(1 << 32), ..claimed };
    layer_refused(&LayerBuilder::new().member(claimed).tar(), Compression::Plain, 0, &["at most"]);
}

#[test]
fn many_extension_headers_in_front_of_one_member_take_the_memory_of_one() {
    let value = vec![b'v'; 60 << 10];
    let mut layer = LayerBuilder::new();
    for number in 0..1000 {
        let name = format!("SCHILY.xattr.user.{number}");
        layer = layer.pax(b'x', &[(name.as_bytes(), &value)]);
        layer = layer.member(Member { kind: b'L', ..Member::file("l", 0o644, value.clone()) });
    }
    // The last long name counts, and has too many bytes.
    let at = layer.position();
    let tar = layer.file("file", 0o644, "").tar();
    layer_refused(&tar, Compression::Zstd, at, &["at most 255"]);
}

#[test]
fn records_that_lie_about_their_length_are_refused_where_their_header_is() {
    let lies: [&[u8]; 8] = [
        b"99999999999999999999 path=x\n",
        b"18446744073709551615 path=x\n",
        b"100000 path=x\n",
        b"0 path=x\n",
        b"-5 path=x\n",
        b"6 path=x\n",
        b"path=x\n",
        b"12 =nothing\n",
    ];
    for kind in [b'x', b'g'] {
        for lie in lies {
            let before = LayerBuilder::new().file("before", 0o644, "");
            let at = before.position();
            let header = Member { kind, ..Member::file("pax", 0o644, lie.to_vec()) };
            let tar = before.member(header).file("after", 0o644, "").tar();
            layer_refused(&tar, Compression::Gzip, at, &["PAX record"]);
        }
    }
}

#[test]
fn extension_headers_without_an_end_or_a_member_are_refused() {
    for kind in [b'g', b'x', b'L'] {
        let open = Member { kind, ..Member::file("open", 0o644, "") };
        let open = Member { declared_bytes: Some(1 << 20), ..open };
        let tar = LayerBuilder::new().member(open).unterminated().tar();
        layer_refused(&tar, Compression::Gzip, 0, &["cut off", "an extended header"]);
    }
    let alone = LayerBuilder::new().pax(b'x', &[(b"path", b"alone")]).unterminated().tar();
    layer_refused(&alone, Compression::Gzip, 0, &["cut off", "the member's headers"]);
    // Global records that concern nobody are none.
    let global = LayerBuilder::new().pax(b'g', &[(b"path", b"alone")]).unterminated().tar();
    one_layer(&global, Compression::Gzip).0.mounted().unmount();
}

/// Each header is short, and all that came before it is in force.
#[test]
fn global_records_pile_up_to_their_limit_and_not_their_time() {
    let mut layer = LayerBuilder::new();
    let names: Vec<_> = (0..30_000).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
    for names in names.chunks(1000) {
        let records: Vec<_> = names.iter().map(|name| (name.as_bytes(), &b"v"[..])).collect();
        layer = layer.pax(b'g', &records);
    }
    for _ in 0..20_000 {
        layer = layer.pax(b'g', &[(b"uid", b"7")]);
    }
    let (scene, _) = one_layer(&layer.file("file", 0o644, "x").tar(), Compression::Zstd);
    let mount = scene.room.mount(scene.image(), &[]);
    assert_within(&mount, MEMORY_BYTES_MAX);
    mount.unmount();
    let mut layer = LayerBuilder::new();
    let value = vec![b'v'; 60 << 10];
    for number in 0..18 {
        let name = format!("SCHILY.xattr.user.{number}");
        layer = layer.pax(b'g', &[(name.as_bytes(), &value)]);
    }
    let (scene, image) = one_layer(&layer.file("file", 0o644, "").tar(), Compression::Zstd);
    let words = [&*image.layers[0].digest.short(), "offset ", "bytes of global PAX records"];
    scene.refused(3, &words);
}

/// A few kilobytes that are attributes of every member, each with a copy of its own.
#[test]
fn attributes_that_all_members_share_are_counted_for_each() {
    let value = vec![b'v'; 60 << 10];
    let records: Vec<_> =
        (0..16).map(|n| (format!("SCHILY.xattr.user.{n}"), value.clone())).collect();
    let records: Vec<_> = records.iter().map(|(k, v)| (k.as_bytes(), &v[..])).collect();
    let layer = |members: usize| {
        let mut layer = LayerBuilder::new().pax(b'g', &records);
        for member in 0..members {
            layer = layer.file(&format!("f{member}"), 0o644, "");
        }
        layer
    };
    // Two layers within the limit of one, and beyond it together: 600 MiB each.
    let image = ImageBuilder::new()
        .layer(layer(640), Compression::Zstd)
        .layer(layer(641), Compression::Zstd)
        .build();
    assert!(image.layer_bytes() < 1 << 20);
    let scene = Scene::of(&image);
    let at = scene.room.path().join("at");
    std::fs::create_dir(&at).unwrap();
    let args = ["mount", scene.image(), at.to_str().unwrap()];
    let (outcome, peak_bytes) = super::measured(&mut scene.room.command(&args));
    assert_eq!(outcome.code(), Some(3), "{outcome}");
    assert!(outcome.stderr.contains("entries of all layers"), "{outcome}");
    assert!(peak_bytes < 2 << 30, "{} MiB", peak_bytes >> 20);
}

#[test]
fn sparse_maps_that_no_file_has_are_refused() {
    let refused = |tar: Vec<u8>, at: usize, words: &[&str]| {
        let tar = LayerBuilder::new().raw(&tar).tar();
        layer_refused(&tar, Compression::Zstd, at, words);
    };
    let millions: Vec<_> = (0..1_000_000).map(|n| (n * 2, 1)).collect();
    refused(old_gnu(1 << 30, 1_000_000, &millions), 0, &["more than 262144 pieces"]);
    refused(old_gnu(100, 20, &[(0, 10), (5, 10)]), 0, &["invalid sparse map"]);
    refused(old_gnu(100, 20, &[(50, 10), (0, 10)]), 0, &["invalid sparse map"]);
    refused(old_gnu(10, 20, &[(0, 20)]), 0, &["the sparse map ends at 20, the file at 10"]);
    refused(old_gnu(100, 10, &[(0, 20)]), 0, &["the sparse map has 20 bytes, the member 10"]);
    refused(old_gnu(1 << 32, 1, &[((1 << 33) - 1, 1)]), 0, &["sparse map"]);
    let maps: [(&[u8], &str); 6] = [
        (b"0,10,5,10", "invalid sparse map"),
        (b"0,18446744073709551615", "invalid sparse map"),
        (b"18446744073709551615,1", "invalid sparse map"),
        (b"0,1,2", "pairs of numbers"),
        (b"0,x", "GNU.sparse.map"),
        (b"0,10", "the sparse map has 10 bytes"),
    ];
    for (map, word) in maps {
        let records: [(&[u8], &[u8]); 2] = [(b"GNU.sparse.size", b"100"), (b"GNU.sparse.map", map)];
        let layer = LayerBuilder::new().pax(b'x', &records);
        let at = layer.position();
        refused(layer.file("f", 0o644, "abc").unterminated().tar(), at, &[word]);
    }
    let version: [(&[u8], &[u8]); 3] = [
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.realsize", b"1000000000"),
    ];
    let mut many = b"1000000\n".to_vec();
    (0..1_000_000).for_each(|n| many.extend_from_slice(format!("{}\n1\n", n * 2).as_bytes()));
    let texts: [(Vec<u8>, &str); 4] = [
        (many, "262144"),
        (b"18446744073709551615\n".to_vec(), "sparse map"),
        (b"2\n0\n".to_vec(), "sparse map"),
        (vec![b'7'; 4096], "sparse map"),
    ];
    for (text, word) in texts {
        let layer = LayerBuilder::new().pax(b'x', &version);
        let at = layer.position();
        let content = [&text[..], &vec![0; text.len().next_multiple_of(512) - text.len()]].concat();
        refused(layer.file("f", 0o644, content).unterminated().tar(), at, &[word]);
    }
}

/// A map as long as it may be, of a file as long as it may be: all of it holes but single bytes.
#[test]
fn the_longest_sparse_map_is_read() {
    let pieces: Vec<_> = (0..262_144u64).map(|n| (n << 14, 1)).collect();
    let size = 1 << 32;
    let mut tar = old_gnu(size, pieces.len() as u64, &pieces);
    tar.extend(std::iter::repeat_n(b'x', pieces.len()));
    let (scene, _) = one_layer(&LayerBuilder::new().raw(&tar).tar(), Compression::Zstd);
    let mount = scene.room.mount(scene.image(), &[]);
    let file = std::fs::File::open(mount.path().join("f")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    let mut read = [1; 3];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut read, (200_000 << 14) - 1).unwrap();
    assert_eq!(&read, b"\0x\0");
    assert_within(&mount, MEMORY_BYTES_MAX);
}
