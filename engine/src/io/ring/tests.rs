#![allow(clippy::unwrap_used)]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;

use futures_util::future::join_all;

use super::*;
use crate::io::runtime::RuntimeOptions;

fn on_executor<F: Future<Output = T> + 'static, T: Send + 'static>(start: impl FnOnce() -> F + Send + 'static) -> T {
    let preempt = Duration::from_micros(500);
    let options = RuntimeOptions { name: "ring".into(), cpu: None, spin: Duration::ZERO, preempt };
    runtime::spawn(options, start).unwrap().join().unwrap()
}

async fn read(file: &impl AsRawFd, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let (verb, fd) = (Verb::Read, file.as_raw_fd());
    let (pages, found) = request(Request { verb, fd, offset, pages: Pages::new(len), start: 0, len }).await?;
    // SAFETY: the kernel has written them.
    Ok(unsafe { std::slice::from_raw_parts(pages.as_ptr(), found) }.to_vec())
}

async fn write(file: &impl AsRawFd, offset: u64, bytes: &[u8]) -> io::Result<usize> {
    let (verb, fd, len) = (Verb::Write, file.as_raw_fd(), bytes.len());
    let pages = Pages::new(len);
    // SAFETY: there is room for them.
    unsafe { pages.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), len) };
    request(Request { verb, fd, offset, pages, start: 0, len }).await.map(|(_, written)| written)
}

fn scratch() -> File {
    let dir = tempfile::tempdir().unwrap();
    OpenOptions::new().read(true).write(true).create_new(true).open(dir.path().join("f")).unwrap()
}

#[test]
fn many_requests_at_once_each_get_their_own_answer() {
    on_executor(|| async {
        let file = scratch();
        let block = |number: u32| number.to_le_bytes().repeat(100 + number as usize % 7);
        // More than the ring has entries.
        let numbers = 0..ENTRIES * 4;
        let written = join_all(numbers.clone().map(|number| {
            let file = &file;
            async move { write(file, u64::from(number) * 1000, &block(number)).await.unwrap() }
        }))
        .await;
        assert!(written.iter().zip(numbers.clone()).all(|(bytes, number)| *bytes == block(number).len()));
        let found = join_all(numbers.clone().map(|number| {
            let file = &file;
            async move { read(file, u64::from(number) * 1000, block(number).len()).await.unwrap() }
        }))
        .await;
        assert!(found.iter().zip(numbers).all(|(bytes, number)| *bytes == block(number)));
        assert!(read(&file, 1 << 40, 10).await.unwrap().is_empty(), "behind the end");
    });
}

#[test]
fn late_answer_wakes_a_thread_that_sleeps() {
    let used = on_executor(|| async {
        // The answers of a pipe are as late as its writer.
        let mut used = Duration::ZERO;
        for delay_ms in [0, 1, 30, 300] {
            let (reader, mut writer) = io::pipe().unwrap();
            let delay = Duration::from_millis(delay_ms);
            let late = std::thread::spawn(move || {
                std::thread::sleep(delay);
                writer.write_all(&[delay_ms as u8]).unwrap();
            });
            let (begin, cpu) = (Instant::now(), thread_cpu());
            assert_eq!(read(&reader, 0, 10).await.unwrap(), [delay_ms as u8]);
            used = thread_cpu() - cpu;
            assert!(begin.elapsed() >= delay.saturating_sub(Duration::from_millis(1)));
            assert!(begin.elapsed() < delay + Duration::from_secs(2), "{:?} for {delay:?}", begin.elapsed());
            late.join().unwrap();
        }
        used
    });
    assert!(used < Duration::from_millis(100), "{used:?} of the core for a wait of 300 ms");
}

fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is ours.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[test]
fn write_of_the_log_that_hangs_keeps_no_core() {
    let used = on_executor(|| async {
        let (mut reader, writer) = io::pipe().unwrap();
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            io::copy(&mut reader, &mut io::sink()).unwrap();
        });
        let (begin, cpu) = (Instant::now(), thread_cpu());
        let awaited = LogAwaited::new();
        // More than a pipe holds.
        let bytes = [7; 1 << 18];
        let mut left = &bytes[..];
        while !left.is_empty() {
            left = &left[write(&writer, u64::MAX, left).await.unwrap()..];
        }
        drop((awaited, writer));
        assert!(begin.elapsed() >= Duration::from_millis(250));
        late.join().unwrap();
        thread_cpu() - cpu
    });
    assert!(used < Duration::from_millis(100), "{used:?} of the core for a wait of 300 ms");
}

#[test]
fn answers_are_taken_up_while_background_work_keeps_the_core() {
    on_executor(|| async {
        let background = runtime::Background::new(Duration::from_micros(500));
        background.set_urgency(2.0);
        let is_over = Rc::new(Cell::new(false));
        let ends = Rc::clone(&is_over);
        background.spawn_detached(async move {
            while !ends.get() {
                runtime::yield_now().await;
            }
        });
        let (reader, mut writer) = io::pipe().unwrap();
        let begin = Instant::now();
        let sender = std::thread::spawn(move || {
            for _ in 0..200 {
                std::thread::sleep(Duration::from_millis(1));
                writer.write_all(&(begin.elapsed().as_micros() as u64).to_le_bytes()).unwrap();
            }
        });
        let mut late = Vec::new();
        for _ in 0..200 {
            let sent = read(&reader, u64::MAX, 8).await.unwrap();
            let sent = Duration::from_micros(u64::from_le_bytes(sent.try_into().unwrap()));
            late.push(begin.elapsed().saturating_sub(sent));
        }
        is_over.set(true);
        sender.join().unwrap();
        late.sort_unstable();
        assert!(late[180] < Duration::from_millis(10), "a tenth came {:?} late and more", late[180]);
    });
}

#[test]
fn other_tasks_run_while_one_waits_for_the_device() {
    on_executor(|| async {
        let (reader, mut writer) = io::pipe().unwrap();
        let waiting = glommio::spawn_local(async move { read(&reader, 0, 10).await.unwrap() });
        let begin = Instant::now();
        for _ in 0..20 {
            glommio::timer::sleep(Duration::from_millis(1)).await;
        }
        assert!(begin.elapsed() < Duration::from_secs(2));
        writer.write_all(&[7]).unwrap();
        assert_eq!(waiting.await, [7]);
    });
}

#[test]
fn request_that_is_given_up_hits_its_own_file_and_no_memory_of_others() {
    on_executor(|| async {
        let (reader, mut writer) = io::pipe().unwrap();
        let file = scratch();
        let again = file.try_clone().unwrap();
        let mut abandoned = Box::pin(write(&file, 0, b"kept"));
        // A worker of the kernel may have been fast enough to answer.
        let _ = futures_lite::future::poll_once(&mut abandoned).await;
        drop(abandoned);
        drop(file);
        let mut abandoned = Box::pin(read(&reader, 0, 4096));
        assert!(futures_lite::future::poll_once(&mut abandoned).await.is_none());
        drop(abandoned);
        drop(reader);
        // Whoever takes these numbers or this memory now sees nothing of it.
        let other = scratch();
        assert_eq!(write(&other, 0, b"other").await.unwrap(), 5);
        writer.write_all(&[0xff; 4096]).unwrap();
        assert_eq!(read(&other, 0, 10).await.unwrap(), b"other");
        let mut bytes = [0; 4];
        again.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"kept");
    });
}

#[test]
fn refused_request_gets_the_systems_error_and_the_ring_goes_on() {
    on_executor(|| async {
        let file = File::open("/proc/self/stat").unwrap();
        assert!(write(&file, 0, b"x").await.is_err());
        assert!(!read(&file, 0, 10).await.unwrap().is_empty());
    });
}
