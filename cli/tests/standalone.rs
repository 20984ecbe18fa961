//! `aquifer standalone` as a process: what it says, what it refuses, how it ends.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on must fail"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn aquifer() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aquifer"));
    command.stdin(Stdio::null()).arg("standalone");
    command
}

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = aquifer().args(arguments).output().unwrap();
    let said = [stdout, stderr].concat();
    (status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// A server that is killed when the test fails before it stops it.
struct Server {
    child: Child,
    greeting: Value,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(data_dir: &Path) -> Server {
    let any = "127.0.0.1:0";
    let mut child = aquifer()
        .args([
            "--output",
            "json",
            "--grpc-addr",
            any,
            "--http-addr",
            any,
            "--bookie-addr",
            any,
        ])
        .arg("--data-dir")
        .arg(data_dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    let greeting = serde_json::from_str(&line);
    Server {
        child,
        greeting: greeting.unwrap_or_else(|_| panic!("no greeting but {line:?}")),
    }
}

fn get(server: &Server, path: &str) -> String {
    let http = server.greeting["http"].as_str().unwrap();
    let mut socket = TcpStream::connect(http.trim_start_matches("http://")).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_server_says_that_it_is_ready_and_ends_in_order_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("not/yet/there");
    for _ in 0..2 {
        let mut server = start(&data_dir);
        assert!(server.greeting["ready_ms"].is_u64(), "{}", server.greeting);
        for (path, expected) in [
            ("/healthz", "ok"),
            ("/readyz", "ok"),
            ("/metrics", "aquifer_process_resident_bytes"),
        ] {
            let answer = get(&server, path);
            assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
            assert!(answer.contains(expected), "{path}: {answer}");
        }
        let (code, said) = run(&[
            "--data-dir",
            data_dir.to_str().unwrap(),
            "--grpc-addr",
            "127.0.0.1:0",
        ]);
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains("another server is running on the data directory"),
            "{said}"
        );
        let pid = Pid::from_raw(i32::try_from(server.child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        assert!(server.child.wait().unwrap().success());
    }
}

#[test]
fn a_port_that_is_taken_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(&folder.path().join("one"));
    let url = server.greeting["url"].as_str().unwrap();
    let taken = url.trim_start_matches("http://");
    let other = folder.path().join("two");
    let other = other.to_str().unwrap();
    let any = "127.0.0.1:0";
    let (code, said) = run(&[
        "--data-dir",
        other,
        "--grpc-addr",
        taken,
        "--http-addr",
        any,
        "--bookie-addr",
        any,
    ]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(taken) && said.contains("in use"), "{said}");
}

#[test]
fn a_configuration_is_checked_before_anything_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("aquifer.toml");
    let file_name = file.to_str().unwrap();
    let check = |text: &str, more: &[&str]| {
        std::fs::write(&file, text).unwrap();
        run(&[&["--config", file_name, "--check-config"], more].concat())
    };
    let (code, said) = check("[broker]\ncluster = \"mine\"\n", &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("cluster = \"mine\""), "{said}");
    let (code, said) = check("[broker]\ncluser = \"mine\"\n", &[]);
    assert_eq!(
        (code, said.contains("broker.cluser")),
        (Some(2), true),
        "{said}"
    );
    let (code, said) = check("[protocols.grpc]\nstreams_max = 0\n", &[]);
    assert_eq!(
        (code, said.contains("streams_max")),
        (Some(2), true),
        "{said}"
    );
    let (code, said) = check("", &["--http-addr", "0.0.0.0:0"]);
    assert_eq!(
        (code, said.contains("--allow-remote")),
        (Some(2), true),
        "{said}"
    );
    let (code, said) = run(&["--config", "not-there.toml"]);
    assert_eq!(
        (code, said.contains("not-there.toml")),
        (Some(2), true),
        "{said}"
    );
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1,
        "only the file"
    );
}
