//! File systems of their own for a test: images behind loop devices, tmpfs; gone when dropped.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Runs a command to its end.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|cause| format!("{program}: {cause}"))?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    if output.status.success() {
        return Ok(said(&output.stdout));
    }
    Err(format!("{program} {}: {} {}", arguments.join(" "), said(&output.stdout), said(&output.stderr)))
}

/// A folder in the target folder, on the disk of the checkout.
pub fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// A block device over a file.
#[derive(Debug)]
pub struct Loop {
    pub device: String,
}

impl Loop {
    pub fn over(file: &Path) -> Loop {
        Loop { device: run("losetup", &["--find", "--show", &file.display().to_string()]).unwrap() }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // One that is still mounted goes with the mount.
        let _ = run("losetup", &["--detach", &self.device]);
    }
}

/// Something mounted.
#[derive(Debug)]
pub struct Mounted {
    pub path: PathBuf,
    _place: TempDir,
}

impl Mounted {
    /// Mounts a device, or for tmpfs its options.
    pub fn new(kind: &str, source: &str, options: &str) -> Mounted {
        let place = folder();
        let path = place.path().to_path_buf();
        run("mount", &["-t", kind, "-o", options, source, &path.display().to_string()]).unwrap();
        Mounted { path, _place: place }
    }

    /// Unmounts; waits for whoever still has files open for a moment.
    pub fn unmount(self) {
        drop(self);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let path = self.path.display().to_string();
        for _ in 0..5 {
            if run("umount", &[&path]).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        // An engine that was closed still has its manifest open; what is busy goes when this process ends.
        let _ = run("umount", &["--lazy", &path]);
    }
}

/// A sparse file of so many MiB.
pub fn image(dir: &Path, mib: u64) -> PathBuf {
    let path = dir.join("image");
    std::fs::File::create(&path).unwrap().set_len(mib << 20).unwrap();
    path
}

/// A fresh file system on an image behind a loop device.
#[derive(Debug)]
pub struct Scratch {
    // Dropped in this order.
    pub mounted: Mounted,
    _device: Loop,
    _dir: TempDir,
}

impl Scratch {
    /// Of `mib` MiB, made by `mkfs.KIND` with arguments of its own.
    pub fn new(kind: &str, mib: u64, arguments: &[&str], options: &str) -> Scratch {
        let dir = folder();
        let device = Loop::over(&image(dir.path(), mib));
        run(&format!("mkfs.{kind}"), &[&["-q"], arguments, &[device.device.as_str()]].concat()).unwrap();
        Scratch { mounted: Mounted::new(kind, &device.device, options), _device: device, _dir: dir }
    }
}
