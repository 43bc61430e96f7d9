//! The cost of files of 20 MiB through the router, beside reading and writing the same bytes without it: without sockets.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use homeserver::http::{Body, Client, Request};
use homeserver::testing::{Server, config};
use http::{Method, header};
use ring::digest::{SHA256, digest};

const FILE_BYTES: usize = 20 << 20;
const PIECE_BYTES: usize = 256 * 1024;

fn request(method: Method, path: &str, token: &str, body: Body) -> Request {
    let request = http::Request::builder().method(method).uri(path);
    request.header(header::AUTHORIZATION, format!("Bearer {token}")).body(body).unwrap()
}

/// Takes an answer piece by piece, as a connection does.
async fn drained(server: &Server, request: Request) -> usize {
    let response = server.app.router().call(request, Client::default()).await;
    assert!(response.status().is_success(), "{response:?}", response = response.status());
    let (mut body, mut size) = (response.into_body(), 0);
    while let Some(piece) = body.chunk(Duration::from_secs(60)).await.unwrap() {
        size += piece.len();
    }
    size
}

fn benches(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    config.data_dir = dir.path().to_owned();
    let server = Server::new(config);
    runtime.block_on(server.app.media.start()).unwrap();
    let user = runtime.block_on(server.user("alice"));
    let mut content = vec![7; FILE_BYTES];
    let upload =
        |content: &[u8]| request(Method::POST, "/_matrix/media/v3/upload", &user.token, Body::from(content.to_vec()));
    let answer = runtime.block_on(user.client.request(upload(&content)));
    let path = answer.json()["content_uri"].as_str().unwrap().replace("mxc://", "/_matrix/client/v1/media/download/");
    let plain = dir.path().join("plain");
    fs::write(&plain, &content).unwrap();

    let mut group = c.benchmark_group("20 MiB");
    group.throughput(Throughput::Bytes(FILE_BYTES as u64)).sample_size(20);
    group.bench_function("download", |b| {
        let get = || request(Method::GET, &path, &user.token, Body::empty());
        b.iter(|| assert_eq!(runtime.block_on(drained(&server, get())), FILE_BYTES));
    });
    group.bench_function("reading the file", |b| {
        let mut piece = vec![0; PIECE_BYTES];
        b.iter(|| {
            let mut file = File::open(&plain).unwrap();
            while file.read(&mut piece).unwrap() > 0 {}
        });
    });
    let mut round = 0_u64;
    // Others each time, lest they are there already.
    let mut fresh = || {
        round += 1;
        content[..8].copy_from_slice(&round.to_be_bytes());
        content.clone()
    };
    group.bench_function("upload", |b| {
        b.iter_batched(
            &mut fresh,
            |content| runtime.block_on(drained(&server, upload(&content))),
            BatchSize::LargeInput,
        );
    });
    group.bench_function("hashing, writing and syncing the file", |b| {
        b.iter_batched(
            &mut fresh,
            |content| {
                let mut file = File::create(&plain).unwrap();
                file.write_all(&content).unwrap();
                file.sync_all().unwrap();
                digest(&SHA256, &content)
            },
            BatchSize::LargeInput,
        );
    });
}

criterion_group!(media, benches);
criterion_main!(media);
