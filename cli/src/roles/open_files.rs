//! Files and sockets of a server: what its settings may need is compared with what the operating
//! system allows, so that idle clients can never take the descriptors that storage needs.

use aquifer_protocol_registry::ProtocolsConfig;
use aquifer_runtime::net::http::CONNECTIONS_MAX;
use aquifer_runtime::open_files;

/// Logs, journals, listeners, connections to other servers, and what libraries open.
const OTHERS: u64 = 256;
/// Connections that are left to clients however little is allowed.
const CONNECTIONS_MIN: u64 = 16;

/// Raises the limit of the process as far as it may, and reduces the connections of clients to
/// what is left beside `storage_files`. Warns when that changes a setting.
pub fn prepare(protocols: &mut ProtocolsConfig, storage_files: u64) {
    let allowed = open_files::raise();
    let wanted = u64::try_from(protocols.grpc.connections_max).unwrap_or(u64::MAX);
    let connections = connections(allowed, storage_files, wanted);
    if connections < wanted {
        let needed = wanted
            .saturating_add(storage_files)
            .saturating_add(reserve());
        tracing::warn!(
            allowed,
            needed,
            connections,
            "the limit of open files is below what the configuration may need: \
             protocols.grpc.connections_max is reduced; raise the hard limit \
             (LimitNOFILE=, ulimit -Hn)"
        );
        protocols.grpc.connections_max = usize::try_from(connections).unwrap_or(usize::MAX);
    }
}

/// The same for a server without clients of its own.
pub fn check(storage_files: u64) {
    let allowed = open_files::raise();
    let needed = storage_files.saturating_add(reserve());
    if allowed < needed {
        tracing::warn!(
            allowed,
            needed,
            "the limit of open files is below what storage may need: lower \
             bookie.open_files_max, or raise the hard limit (LimitNOFILE=, ulimit -Hn)"
        );
    }
}

fn reserve() -> u64 {
    u64::try_from(CONNECTIONS_MAX).unwrap_or(u64::MAX) + OTHERS
}

fn connections(allowed: u64, storage_files: u64, wanted: u64) -> u64 {
    let left = allowed.saturating_sub(storage_files.saturating_add(reserve()));
    wanted.min(left.max(CONNECTIONS_MIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_storage_leaves() {
        assert_eq!(connections(1 << 20, 4096, 4096), 4096, "enough for all");
        assert_eq!(connections(1024, 256, 4096), 1024 - 256 - reserve());
        assert_eq!(connections(512, 4096, 4096), CONNECTIONS_MIN);
        assert_eq!(connections(u64::MAX, 4096, 7), 7);
    }
}
