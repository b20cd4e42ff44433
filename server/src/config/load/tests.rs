use std::path::PathBuf;

use super::super::{ByteSize, Duration, IoChoice, annotated, as_json, commented};
use super::*;

/// Loads `text` as the file `trilog.toml` with these variables and flags.
fn check(text: &str, env: &[(&str, &str)], flags: &[(&str, &str, &str)]) -> Result<Loaded, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trilog.toml");
    std::fs::write(&path, text).unwrap();
    let owned = |text: &&str| (*text).to_owned();
    let sources = Sources {
        file: Some(path.clone()),
        env: env.iter().map(|(n, v)| (owned(n), owned(v))).collect(),
        flags: flags
            .iter()
            .map(|(f, k, v)| (owned(f), owned(k), owned(v)))
            .collect(),
    };
    load(&sources).map_err(|error| {
        error
            .to_string()
            .replace(&path.display().to_string(), "trilog.toml")
    })
}

fn refused(text: &str) -> String {
    check(text, &[], &[]).unwrap_err()
}

#[test]
fn an_empty_file_gives_the_defaults() {
    let loaded = check("", &[], &[]).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(*loaded.origin("node.id"), Origin::Default);
}

#[test]
fn each_layer_overrides_the_one_below() {
    let file = "[node]\nid = 2\nrack = \"a\"\n[raft]\nheartbeat_interval = \"50ms\"\n";
    let env = [
        ("TRILOG_NODE_RACK", "b"),
        ("TRILOG_STORAGE_IO", "threads"),
        ("TRILOG_CLUSTER_SEEDS", "a:7401, b:7401"),
        ("PATH", "/bin"),
    ];
    let flags = [
        ("--set", "storage.wal_files", "8"),
        ("--rack", "node.rack", "c"),
    ];
    let loaded = check(file, &env, &flags).unwrap();
    let config = &loaded.config;
    assert_eq!(config.node.id, 2);
    assert_eq!(config.node.rack.as_deref(), Some("c"));
    assert_eq!(config.raft.heartbeat_interval, Duration::from_millis(50));
    assert_eq!(config.storage.io, IoChoice::Threads);
    assert_eq!(config.storage.wal_files, 8);
    assert_eq!(config.cluster.seeds, ["a:7401", "b:7401"]);
    assert_eq!(config.storage.cache_size, ByteSize::mib(256));

    assert!(matches!(
        loaded.origin("node.id"),
        Origin::File { line: 2, .. }
    ));
    assert_eq!(*loaded.origin("node.rack"), Origin::Flag("--rack".into()));
    assert_eq!(
        *loaded.origin("storage.io"),
        Origin::Env("TRILOG_STORAGE_IO".into())
    );
    assert_eq!(*loaded.origin("storage.cache_size"), Origin::Default);
}

#[test]
fn an_unknown_key_is_an_error_with_its_line_and_the_nearest_name() {
    assert_eq!(
        refused("[node]\nid = 1\n\ndatadir = \"/data\"\n"),
        "trilog.toml:4: [node] has no key \"datadir\"\n  did you mean data_dir?"
    );
    assert_eq!(
        refused("[strorage]\nio = \"auto\"\n"),
        "trilog.toml:1: there is no section [strorage]\n  did you mean [storage]?"
    );
    assert_eq!(
        refused("[node]\nseeds = []\n"),
        "trilog.toml:2: [node] has no key \"seeds\"\n  seeds is a key of [cluster]"
    );
    assert_eq!(
        refused("data_dir = \"/data\"\n"),
        "trilog.toml:1: there is no section [data_dir]\n  data_dir is a key of [node]"
    );
}

#[test]
fn every_unknown_key_is_reported_at_once() {
    let message = refused("[node]\nidd = 1\n[raft]\nheartbeat = \"1s\"\n[zebra]\n");
    assert_eq!(message.matches("trilog.toml:").count(), 3, "{message}");
}

#[test]
fn a_value_of_the_wrong_kind_names_its_line() {
    for (text, expected) in [
        ("[node]\n\nid = \"one\"\n", "trilog.toml:3: "),
        (
            "[raft]\nheartbeat_interval = 100\n",
            "a time span like \"100ms\"",
        ),
        (
            "[storage]\ncache_size = \"lots\"\n",
            "an amount of bytes like 64MiB",
        ),
        ("[storage]\nio = \"iouring\"\n", "trilog.toml:2: "),
        ("[node\nid = 1\n", "trilog.toml:1: "),
        ("node = 1\n", "node is a section"),
    ] {
        let message = refused(text);
        assert!(message.contains(expected), "{text:?} gave {message:?}");
    }
}

#[test]
fn an_unknown_variable_is_an_error_but_kubernetes_links_are_not() {
    let message = check("", &[("TRILOG_NODE_IDD", "1")], &[]).unwrap_err();
    assert_eq!(
        message,
        "TRILOG_NODE_IDD: no key of the configuration has this variable\n  \
         did you mean TRILOG_NODE_ID?"
    );
    let message = check("", &[("TRILOG_DATA_DIR", "/data")], &[]).unwrap_err();
    assert!(
        message.ends_with("did you mean TRILOG_NODE_DATA_DIR?"),
        "{message}"
    );
    let links = [
        ("TRILOG_SERVICE_HOST", "10.0.0.1"),
        ("TRILOG_SERVICE_PORT_GRPC", "7400"),
        ("TRILOG_PORT", "tcp://10.0.0.1:7400"),
        ("TRILOG_PORT_7400_TCP_ADDR", "10.0.0.1"),
        ("TRILOG_SERVER", "127.0.0.1:7400"),
        ("TRILOG_SEEDS", "200"),
    ];
    assert!(check("", &links, &[]).is_ok());
    let message = check("", &[("TRILOG_SEEDS", "10.0.0.1:7401")], &[]).unwrap_err();
    assert!(message.contains("TRILOG_CLUSTER_SEEDS"), "{message}");
}

#[test]
fn an_unreadable_variable_or_flag_says_what_was_expected() {
    let message = check("", &[("TRILOG_NODE_ID", "one")], &[]).unwrap_err();
    assert_eq!(
        message,
        "TRILOG_NODE_ID: node.id: expected a whole number, found \"one\""
    );
    let message = check("", &[], &[("--set", "storage.io", "fast")]).unwrap_err();
    assert_eq!(
        message,
        "--set: storage.io: expected auto, uring, threads, found \"fast\""
    );
    let message = check("", &[], &[("--set", "wal_files", "8")]).unwrap_err();
    assert_eq!(
        message,
        "--set: there is no key \"wal_files\"\n  did you mean storage.wal_files?"
    );
}

#[test]
fn without_authentication_only_loopback_is_accepted() {
    let message = refused("[listen]\ngrpc = \"0.0.0.0:7400\"\n");
    assert!(
        message.starts_with("trilog.toml:2: listen.grpc is 0.0.0.0:7400"),
        "{message}"
    );
    assert!(message.contains("use 127.0.0.1:7400"), "{message}");
    assert!(
        check(
            "[listen]\ngrpc = \"[::1]:7400\"\nhttp = \"127.0.0.9:80\"\n",
            &[],
            &[]
        )
        .is_ok()
    );
}

#[test]
fn with_authentication_kafka_clients_may_come_from_elsewhere_and_others_may_not() {
    let with = |listen: &str| {
        let access = "[access]\nauthentication = \"required\"\nsuper_users = [\"admin\"]\n";
        check(&format!("{access}[listen]\n{listen}\n"), &[], &[])
    };
    assert!(with("kafka = \"0.0.0.0:9092\"").is_ok());
    for (listen, why) in [
        ("grpc = \"0.0.0.0:7400\"", "in the open"),
        ("peer = \"0.0.0.0:7401\"", "nobody is asked"),
        ("http = \"0.0.0.0:8222\"", "nobody is asked"),
    ] {
        let message = with(listen).unwrap_err();
        assert!(message.contains(why), "{message}");
    }
    let nobody = refused("[access]\nauthentication = \"required\"\n");
    assert!(
        nobody.contains("access.super_users names nobody"),
        "{nobody}"
    );
}

#[test]
fn values_out_of_bounds_or_at_odds_are_refused() {
    for (text, expected) in [
        ("[node]\nid = 0\n", "numbered from 1"),
        ("[listen]\ngrpc = \"127.0.0.1:8222\"\n", "as is listen.grpc"),
        ("[cluster]\nseeds = [\"node-2\"]\n", "expected host:port"),
        ("[cluster]\nseeds = [\"::1:7401\"]\n", "brackets"),
        ("[advertise]\ngrpc = \"host:0\"\n", "1 to 65535"),
        ("[storage]\nwal_file_size = \"1MiB\"\n", "4MiB to 4GiB"),
        ("[storage]\nwal_file_size = 4194305\n", "multiple of 4KiB"),
        ("[tls]\ncertificate = \"node.pem\"\n", "has no tls.key"),
        ("[tls]\nkey = \"node.key\"\n", "has no tls.certificate"),
        ("[storage]\nwal_files = 1\n", "4 to 1024"),
        (
            "[raft]\nelection_timeout_min = \"150ms\"\n",
            "at least twice",
        ),
        ("[raft]\nelection_timeout_max = \"300ms\"\n", "not above"),
        ("[raft]\ncatch_up_rate = \"64KiB\"\n", "begin anew"),
        (
            "[limits]\ninflight_size = \"1KiB\"\n",
            "smaller than limits.batch_size",
        ),
        (
            "[limits]\nrequest_memory = \"1MiB\"\n",
            "smaller than two batches",
        ),
    ] {
        let message = refused(text);
        assert!(message.contains(expected), "{text:?} gave {message:?}");
        assert!(
            message.starts_with("trilog.toml:2") || message.contains("listen"),
            "{message}"
        );
    }
}

#[test]
fn a_missing_file_says_how_to_write_one() {
    let sources = Sources {
        file: Some(PathBuf::from("/nonexistent/trilog.toml")),
        ..Sources::default()
    };
    let message = load(&sources).unwrap_err().to_string();
    assert!(message.contains("`trilog config init /nonexistent/trilog.toml` writes one"));
}

#[test]
fn the_commented_file_reads_back_as_the_defaults_with_and_without_its_comments() {
    let text = commented(&Config::default());
    assert_eq!(check(&text, &[], &[]).unwrap().config, Config::default());

    let uncommented: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("# ") && !line.ends_with("= "))
        .map(|line| line.trim_start_matches('#'))
        .collect();
    let loaded = check(&uncommented.join("\n"), &[], &[]).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert!(matches!(
        loaded.origin("raft.quiesce_after"),
        Origin::File { .. }
    ));
}

#[test]
fn what_is_printed_reads_back_and_says_where_it_came_from() {
    let file = "[node]\nid = 7\nrack = 'a \"quoted\" rack'\n";
    let loaded = check(file, &[("TRILOG_LOG_LEVEL", "debug")], &[]).unwrap();
    let printed = annotated(&loaded);
    assert!(printed.contains("# TRILOG_LOG_LEVEL"), "{printed}");
    assert!(printed.contains("# default"), "{printed}");
    assert_eq!(check(&printed, &[], &[]).unwrap().config, loaded.config);

    let json = as_json(&loaded);
    let id = &json.as_array().unwrap()[0];
    assert_eq!(id["key"], "node.id");
    assert_eq!(id["value"], 7);
    assert_eq!(id["origin"], "file");
    assert_eq!(id["variable"], "TRILOG_NODE_ID");
}

#[test]
fn lines_count_from_one() {
    assert_eq!(line_of("", 0), 1);
    assert_eq!(line_of("a\nb\n", 2), 2);
    assert_eq!(line_of("a\nb\n", 99), 3);
}
