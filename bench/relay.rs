//! A link for benchmarks: relays TCP connections with a limit of bandwidth and a delay.
//!
//! `relay HOST:PORT MBIT_PER_S DELAY_MS` listens on a free port of 127.0.0.1, prints that port, and for
//! each line on standard input prints what came by so far: bytes to the server, bytes from it,
//! connections. It ends with its standard input, and so with whoever started it.
//!
//! All connections share the link. In each direction one byte leaves after the other, at the given
//! rate, and arrives the delay later; so a round trip takes twice the delay. A connection's first byte
//! waits for one round trip more, as TCP's handshake would take. There is no loss and no slow start.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{env, io, thread};

/// One packet: small enough that connections take turns, large enough to cost little.
const PIECE_BYTES: usize = 64 << 10;

/// How much may wait in front of the link, as time: a router's queue. More than a sleep is late.
const QUEUE: Duration = Duration::from_millis(4);

/// Pieces of one connection on the link: more than rate times delay.
const PIECES_MAX: usize = 256;

/// One direction of the link.
struct Lane {
    bytes_per_s: f64,
    delay: Duration,
    /// When the last byte that was accepted has left.
    free: Mutex<Instant>,
    bytes: AtomicU64,
}

/// Bytes on the link, and when they arrive.
struct Piece {
    arrives: Instant,
    bytes: Vec<u8>,
}

impl Lane {
    fn new(mbit_per_s: f64, delay: Duration) -> Arc<Self> {
        let bytes_per_s = mbit_per_s * 1e6 / 8.0;
        Arc::new(Lane { bytes_per_s, delay, free: Mutex::new(Instant::now()), bytes: 0.into() })
    }

    /// When so many bytes have left that are given to the link now.
    fn departure(&self, size: usize) -> Instant {
        self.bytes.fetch_add(size as u64, Ordering::Relaxed);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free =
            (*free).max(Instant::now()) + Duration::from_secs_f64(size as f64 / self.bytes_per_s);
        *free
    }

    /// Puts on the link what comes from one side, until that ends.
    fn take(&self, mut from: TcpStream, link: &SyncSender<Piece>) {
        let mut bytes = vec![0; PIECE_BYTES];
        while let Ok(size @ 1..) = from.read(&mut bytes) {
            let departs = self.departure(size);
            let piece = Piece { arrives: departs + self.delay, bytes: bytes[..size].to_vec() };
            if link.send(piece).is_err() {
                break;
            }
            sleep_until(departs.checked_sub(QUEUE).unwrap_or(departs));
        }
    }
}

/// Gives to the other side what arrives, and tells it the end.
fn deliver(link: &Receiver<Piece>, mut to: &TcpStream) {
    for piece in link {
        sleep_until(piece.arrives);
        if to.write_all(&piece.bytes).is_err() {
            break;
        }
    }
    // When the other side is gone, so is whoever sends to it.
    let _ = to.shutdown(Shutdown::Write);
}

fn sleep_until(moment: Instant) {
    thread::sleep(moment.saturating_duration_since(Instant::now()));
}

/// One direction of one connection, which ends when either side does.
fn carry(lane: Arc<Lane>, from: TcpStream, to: TcpStream) {
    let (link, arriving) = sync_channel(PIECES_MAX);
    thread::spawn(move || {
        deliver(&arriving, &to);
        drop(arriving);
    });
    thread::spawn(move || lane.take(from, &link));
}

fn connect(client: TcpStream, server: &str, up: Arc<Lane>, down: Arc<Lane>) -> io::Result<()> {
    thread::sleep(2 * up.delay);
    let server = TcpStream::connect(server)?;
    for side in [&client, &server] {
        side.set_nodelay(true)?;
    }
    carry(up, client.try_clone()?, server.try_clone()?);
    carry(down, server, client);
    Ok(())
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [server, rate, delay] = &arguments[..] else {
        return Err(io::Error::other("usage: relay HOST:PORT MBIT_PER_S DELAY_MS"));
    };
    let number = |text: &str| text.parse::<f64>().map_err(io::Error::other);
    let (rate, delay) = (number(rate)?, Duration::from_secs_f64(number(delay)? / 1000.0));
    let (up, down) = (Lane::new(rate, delay), Lane::new(rate, delay));
    let connections = Arc::new(AtomicU64::new(0));

    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    let (server, lanes, count) = (server.clone(), (up.clone(), down.clone()), connections.clone());
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::Relaxed);
            let (server, (up, down)) = (server.clone(), lanes.clone());
            thread::spawn(move || {
                if let Err(error) = connect(client, &server, up, down) {
                    eprintln!("relay: {server}: {error}");
                }
            });
        }
    });
    for _ in io::stdin().lines() {
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        println!("{} {} {}", now(&up.bytes), now(&down.bytes), now(&connections));
    }
    Ok(())
}
