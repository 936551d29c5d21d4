//! A serving process in the background: both ends of the pipe on which it says that it is ready.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::fetch::{Error, Result};

/// What the serving process writes to standard output when the tree answers.
const READY: &[u8] = b"ready\n";

/// The process that has started this one, by its number.
#[derive(Debug, Clone, Copy)]
pub struct Starter(pub i32);

impl Starter {
    /// It has ended, however: nobody waits for the tree any more.
    pub fn is_gone(self) -> bool {
        let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
        parent != Some(self.0)
    }
}

/// The option that tells a process that it is the serving one. It comes first: what stands last may
/// belong to the command of a container.
const CHILD_OPTION: &str = "--background-child";

/// For glibc's malloc, which otherwise gives each thread that decodes an arena of its own, and each
/// arena keeps the largest that it ever held: 178 MB instead of 83 MB after a scan of 600 MB. And
/// which otherwise, once a span was freed, takes the next from the heap, and gives nothing back of what
/// entries took on their way to a tree: 95 to 111 MB instead of 76 MB after 100,000 files were read.
const MALLOC: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "2"),
    // More than nearly all spans have: each that the kernel gives and takes costs a tenth of its decoding.
    ("MALLOC_MMAP_THRESHOLD_", "1310720"),
    ("MALLOC_TRIM_THRESHOLD_", "4194304"),
];

/// A descriptor of the caller's that is to hear that the tree answers.
pub struct ReadyDescriptor {
    number: u32,
    file: File,
}

impl ReadyDescriptor {
    /// The descriptor with this number.
    ///
    /// # Errors
    /// It is not open, or not for writing.
    pub fn open(number: u32) -> Result<Self> {
        // By name, because a number from the command line proves nothing about who owns the
        // descriptor.
        let file = File::options().append(true).open(format!("/proc/self/fd/{number}"));
        let file = file.map_err(|e| Error::local(format!("--ready-fd {number}"), &e))?;
        Ok(ReadyDescriptor { number, file })
    }

    /// Writes the line.
    ///
    /// # Errors
    /// Nobody reads it.
    pub fn tell(mut self) -> Result<()> {
        let told = self.file.write_all(READY);
        told.map_err(|e| Error::local(format!("--ready-fd {}", self.number), &e))
    }
}

/// Starts this program again to serve, passes its errors and its exit code on, and returns when
/// the tree answers, which it tells `ready_fd`, too. Nothing is mounted if it cannot.
///
/// # Errors
/// It cannot be started, or nobody reads `ready_fd`.
pub fn serve_in_background(ready_fd: Option<u32>) -> Result<i32> {
    let failed = |e: &std::io::Error| Error::local("cannot start the serving process", e);
    let ready = ready_fd.map(ReadyDescriptor::open).transpose()?;
    keep_descriptors_here().map_err(|e| failed(&e))?;
    // The program that runs now, even if its file was replaced meanwhile.
    let mut child = Command::new("/proc/self/exe");
    for (name, value) in MALLOC.iter().filter(|(name, _)| std::env::var_os(name).is_none()) {
        child.env(name, value);
    }
    let mut child = child
        .arg0("layoutfs")
        .arg(format!("{CHILD_OPTION}={}", std::process::id()))
        .args(std::env::args_os().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| failed(&e))?;
    let mut said = Vec::new();
    if let Some(output) = child.stdout.take() {
        let most = READY.len() as u64 + 1;
        output.take(most).read_to_end(&mut said).map_err(|e| failed(&e))?;
    }
    if said == READY {
        let told = ready.map_or(Ok(()), ReadyDescriptor::tell);
        if told.is_err() {
            // Whoever hears of an error has no mount.
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            child.wait().map_err(|e| failed(&e))?;
        }
        return told.map(|()| 0);
    }
    // It has printed why.
    let status = child.wait().map_err(|e| failed(&e))?;
    Ok(status.code().filter(|code| *code != 0).unwrap_or(1))
}

/// Descriptors that this process was given do not go on to the serving one, which would keep locks
/// held and pipes open for as long as the mount lives.
fn keep_descriptors_here() -> std::io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(number) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        if number <= 2 {
            continue;
        }
        let Ok(raw) = i32::try_from(number) else { continue };
        // SAFETY: it was open a moment ago. If another thread has closed it since, the call fails
        // or marks a descriptor of ours, and ours are all marked already.
        #[expect(unsafe_code, reason = "there is no owner: the number is inherited")]
        let inherited = unsafe { std::os::fd::BorrowedFd::borrow_raw(raw) };
        let _ = rustix::io::fcntl_setfd(inherited, rustix::io::FdFlags::CLOEXEC);
    }
    Ok(())
}

/// Leaves the terminal: a session of our own, log lines to `log`, and the word to whoever waits.
///
/// # Errors
/// The log cannot be made.
pub fn detach(log: &Path) -> Result<()> {
    let failed = |e: &std::io::Error| Error::local(format!("cannot log to {}", log.display()), e);
    let log_file = File::create(log).map_err(|e| failed(&e))?;
    let null = File::options().read(true).write(true).open("/dev/null").map_err(|e| failed(&e))?;
    // Fails only for a process that leads a group, which has left the terminal already.
    let _ = rustix::process::setsid();
    let mut out = std::io::stdout();
    out.write_all(READY).and_then(|()| out.flush()).map_err(|e| failed(&e))?;
    rustix::stdio::dup2_stdout(&null).map_err(|e| failed(&e.into()))?;
    rustix::stdio::dup2_stderr(&log_file).map_err(|e| failed(&e.into()))?;
    // The mount must not keep the directory busy that the user called from.
    std::env::set_current_dir("/").map_err(|e| failed(&e))?;
    Ok(())
}
