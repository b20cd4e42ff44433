//! A client that is none of ours: Python's gRPC with code generated from the protocol files, as
//! docs/native-api.md says.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod raw;
mod support;

use std::path::Path;
use std::process::{Command, Output};

use bytes::Bytes;
use raw::Raw;
use support::{Cluster, stderr, stdout};
use tonic::Request;
use tonic::transport::Channel;

/// A Python with gRPC and its code generator; the environment may name one.
fn python(arguments: &[&str]) -> Command {
    let program = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

fn probe() -> Result<(), String> {
    let tried = python(&["-c", "import grpc, grpc_tools"]).output();
    let tried = tried.map_err(|error| error.to_string())?;
    if tried.status.success() {
        return Ok(());
    }
    let said = stderr(&tried);
    Err(said.lines().last().unwrap_or_default().to_owned())
}

fn succeed(output: &Output) -> String {
    let errors = stderr(output);
    assert!(output.status.success(), "{}\n{errors}", stdout(output));
    stdout(output)
}

/// What a node says it serves, as gRPC's own reflection service tells it.
async fn services(address: &str) -> String {
    let address = format!("http://{address}");
    let endpoint = Channel::from_shared(address).unwrap();
    let mut grpc = tonic::client::Grpc::new(endpoint.connect().await.unwrap());
    grpc.ready().await.unwrap();
    // Field 7, empty: list the services.
    let request = Request::new(futures::stream::iter([Bytes::from_static(&[0x3a, 0])]));
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let answers = grpc.streaming(request, path.parse().unwrap(), Raw).await;
    let answer = answers.unwrap().into_inner().message().await.unwrap();
    String::from_utf8_lossy(&answer.unwrap()).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_tells_tools_what_it_serves() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path());
    let said = services(cluster.address(1)).await;
    for service in ["Topics", "Producer", "Fetch", "Offsets", "Cluster"] {
        assert!(said.contains(&format!("trilog.v1.{service}")), "{said:?}");
    }
    cluster.stop();
}

#[test]
fn a_client_generated_from_the_protocol_files_writes_and_reads() {
    if let Err(reason) = probe() {
        eprintln!("SKIPPED: no Python with grpcio and grpcio-tools ({reason})");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let generated = dir.path().join("client");
    std::fs::create_dir(&generated).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let protos = root.join("server/wire/proto");
    let out = generated.to_str().unwrap();
    let mut generate = python(&["-m", "grpc_tools.protoc", "-I"]);
    generate.arg(&protos);
    generate.args([
        &format!("--python_out={out}"),
        &format!("--grpc_python_out={out}"),
    ]);
    for file in std::fs::read_dir(protos.join("trilog/v1")).unwrap() {
        generate.arg(file.unwrap().path());
    }
    succeed(&generate.output().unwrap());

    let cluster = Cluster::start(&dir.path().join("data"));
    let script = root.join("docs/examples/first_records.py");
    let run = python(&[script.to_str().unwrap(), cluster.address(2)])
        .env("PYTHONPATH", &generated)
        .output()
        .unwrap();
    let said = succeed(&run);
    let expected = [
        "topic first partitions 1",
        "published 0 0",
        "published 0 1",
        "published 0 2",
        "leader ",
        "read 0 python record 0",
        "read 1 python record 1",
        "read 2 python record 2",
        "refused NOT_FOUND there is no topic 'no-such' (create it with: trilog topic create no-such)",
    ];
    for (line, expected) in said.lines().zip(expected) {
        assert!(line.starts_with(expected), "{line:?} is not {expected:?}");
    }
    assert_eq!(said.lines().count(), expected.len(), "{said}");
    cluster.stop();
}
