//! What the definitions say of the services there are.

use prost::Message;

use crate::DESCRIPTORS;

/// The part of a `google.protobuf.FileDescriptorSet` that is about services.
#[derive(Clone, PartialEq, Message)]
struct Files {
    #[prost(message, repeated, tag = "1")]
    files: Vec<File>,
}

#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(string, tag = "2")]
    package: String,
    #[prost(message, repeated, tag = "6")]
    services: Vec<Service>,
}

#[derive(Clone, PartialEq, Message)]
struct Service {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    methods: Vec<Method>,
}

#[derive(Clone, PartialEq, Message)]
struct Method {
    #[prost(string, tag = "1")]
    name: String,
}

/// The path of every method of every service, as it is called.
#[must_use]
pub fn paths() -> Vec<String> {
    let files = Files::decode(DESCRIPTORS).unwrap_or_default().files;
    let mut paths = Vec::new();
    for file in &files {
        for service in &file.services {
            let called =
                |method: &Method| format!("/{}.{}/{}", file.package, service.name, method.name);
            paths.extend(service.methods.iter().map(called));
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_found() {
        let paths = paths();
        for path in [
            "/trilog.v1.Cluster/Status",
            "/trilog.v1.Producer/Produce",
            "/trilog.v1.Transactions/EndOpen",
        ] {
            assert!(paths.iter().any(|found| found == path), "{paths:?}");
        }
    }
}
