//! The program itself: what it prints, what it refuses, how it ends.

mod support;

use std::process::{ExitStatus, Stdio};

use support::GIVE_UP;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};

fn program(arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_upstream-stubs"))
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// The next line `name http://address` that the program prints.
async fn started(lines: &mut Lines<BufReader<ChildStdout>>) -> (String, String) {
    let line = tokio::time::timeout(GIVE_UP, lines.next_line())
        .await
        .expect("a line in time")
        .unwrap()
        .expect("a line");
    let (name, url) = line.split_once(' ').unwrap();
    (
        name.to_owned(),
        url.trim().strip_prefix("http://").unwrap().to_owned(),
    )
}

async fn ask(addr: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream
        .write_all(
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes(),
        )
        .await
        .unwrap();
    let mut got = String::new();
    tokio::time::timeout(GIVE_UP, stream.read_to_string(&mut got))
        .await
        .unwrap()
        .unwrap();
    got
}

async fn terminated(mut child: Child) -> ExitStatus {
    let id = child.id().unwrap().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .await
            .unwrap()
            .success()
    );
    tokio::time::timeout(GIVE_UP, child.wait())
        .await
        .expect("it ends")
        .unwrap()
}

async fn refused(arguments: &[&str]) -> (ExitStatus, String) {
    let output = tokio::time::timeout(GIVE_UP, program(arguments).wait_with_output())
        .await
        .expect("it ends")
        .unwrap();
    (output.status, String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn all_services_start_say_where_and_end_on_sigterm() {
    let mut child = program(&["--all", "--free-ports"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for expected in [
        "storefront",
        "bff",
        "auth",
        "members",
        "products",
        "deals",
        "orders",
    ] {
        let (name, addr) = started(&mut lines).await;
        assert_eq!(name, expected);
        assert!(
            ask(&addr, "/health")
                .await
                .contains(&format!("\"service\":\"{name}\""))
        );
        if name == "bff" {
            assert!(ask(&addr, "/api/home").await.starts_with("HTTP/1.1 200"));
        }
    }
    assert!(terminated(child).await.success());
}

#[tokio::test]
async fn one_service_starts_where_it_is_told() {
    let mut child = program(&["storefront", "--listen", "127.0.0.1:0", "--build-id", "b7"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (name, addr) = started(&mut lines).await;
    assert_eq!(name, "storefront");
    assert!(ask(&addr, "/").await.contains("/_next/static/css/b7.css"));
    // The port is taken now: the next one says so and fails.
    let (status, why) = refused(&["members", "--listen", &addr]).await;
    assert!(
        !status.success() && why.contains("members") && why.contains(&addr),
        "{why}"
    );
    assert!(terminated(child).await.success());
}

#[tokio::test]
async fn senseless_arguments_are_refused() {
    for arguments in [
        &["shop"][..],
        &[],
        &["--all", "auth"],
        &["replay"],
        &["auth", "--free-ports"],
    ] {
        let (status, why) = refused(arguments).await;
        assert_eq!(status.code(), Some(2), "{arguments:?}: {why}");
    }
    let (status, why) = refused(&[
        "replay",
        "--listen",
        "127.0.0.1:0",
        "--recording",
        "/nowhere.jsonl",
    ])
    .await;
    assert!(
        status.code() == Some(1) && why.contains("/nowhere.jsonl"),
        "{why}"
    );
    let (status, why) = refused(&["bff", "--listen", "127.0.0.1:0", "--products", "ftp://x"]).await;
    assert!(status.code() == Some(1) && why.contains("ftp://x"), "{why}");
}
