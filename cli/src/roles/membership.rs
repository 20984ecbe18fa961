//! The way of a process into its cluster: the metadata store, and the lease under which the process
//! says that it lives.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aquifer_metadata::error::MetadataError;
use aquifer_metadata::etcd::{EtcdConfig, EtcdStore};
use aquifer_metadata::lease::Lease;
use aquifer_metadata::store::MetadataStore;
use aquifer_runtime::clock;
use aquifer_runtime::config::Secret;
use aquifer_runtime::disk::Disk;
use aquifer_runtime::task::TaskGroup;
use aquifer_runtime::telemetry::Telemetry;

use crate::exit::{CliError, Exit};
use crate::roles::settings::{ClusterSection, EtcdSettings};
use crate::roles::storage::Seams;

const PLAIN: &str = "etcd://";
const TLS: &str = "etcds://";
/// Shortest lease.
const LEASE_MS_MIN: u64 = 1_000;
/// Pause before the store is tried again during a start.
const RETRY: Duration = Duration::from_millis(500);
/// How long a process that ends waits until its keys are withdrawn.
const WITHDRAW_MAX: Duration = Duration::from_secs(5);

/// What a start that needs the store waits for, in the words of health checks.
pub const WAITING: &str = "waiting for the metadata store";
/// What it does then.
pub const JOINING: &str = "joining the cluster";

/// A process in its cluster.
pub struct Membership {
    etcd: Arc<EtcdStore>,
    /// Coordination.
    pub store: Arc<dyn MetadataStore>,
    /// What the process announces.
    pub lease: Lease,
}

impl Membership {
    /// Connects to the metadata store and begins to hold a lease. A store that does not answer yet
    /// is waited for as long as the settings say.
    ///
    /// # Errors
    /// When the settings are wrong, or the store does not answer in time.
    pub async fn open(
        cluster: &ClusterSection,
        seams: &Seams,
        telemetry: &Telemetry,
        tasks: &TaskGroup,
    ) -> Result<Membership, CliError> {
        let etcd = connect_in_time(cluster, seams, tasks).await?;
        let store: Arc<dyn MetadataStore> = etcd.clone();
        let ttl = Duration::from_millis(cluster.etcd.lease_ms);
        let lease = Lease::start(Arc::clone(&store), ttl, Arc::clone(&seams.rng), tasks);
        let meter = telemetry.meter("aquifer_metadata");
        etcd.show(&meter);
        lease.show(&meter);
        Ok(Membership { etcd, store, lease })
    }

    /// Withdraws what is announced. When metadata is away it expires by itself instead.
    pub async fn withdraw(&self) {
        let closed = clock::timeout(WITHDRAW_MAX, self.lease.close()).await;
        if closed.is_err() {
            tracing::warn!("the process could not withdraw: its lease expires by itself");
        }
    }

    /// Ends the connection to the metadata store.
    pub async fn close(&self) {
        self.etcd.close().await;
    }
}

/// Connects to a metadata store that may start later than this process.
async fn connect_in_time(
    cluster: &ClusterSection,
    seams: &Seams,
    tasks: &TaskGroup,
) -> Result<Arc<EtcdStore>, CliError> {
    let wait = Duration::from_millis(cluster.etcd.wait_ms);
    let began = seams.clock.monotonic();
    let mut is_told = false;
    loop {
        let error = match connect(cluster, seams, tasks).await {
            Err(error) if error.exit() == Exit::CannotConnect => error,
            done => return done,
        };
        if seams.clock.monotonic().saturating_sub(began) >= wait {
            return Err(error);
        }
        if !is_told {
            tracing::warn!(%error, "waiting for the metadata store");
            is_told = true;
        }
        clock::sleep(RETRY).await;
    }
}

/// Connects to the metadata store, and to no more: for tools, which announce nothing.
///
/// # Errors
/// When the settings are wrong, or the store does not answer or does not let it in.
pub async fn connect(
    cluster: &ClusterSection,
    seams: &Seams,
    tasks: &TaskGroup,
) -> Result<Arc<EtcdStore>, CliError> {
    let password = password(&cluster.etcd, &*seams.disk)?;
    let config = etcd_config(cluster, password)?;
    let (clock, rng) = (Arc::clone(&seams.clock), Arc::clone(&seams.rng));
    match EtcdStore::connect(&config, clock, rng, tasks).await {
        Ok(store) => Ok(Arc::new(store)),
        Err(error @ MetadataError::Unavailable(_)) => {
            let tried = config.endpoints.join(", ");
            let message = format!("etcd cannot be reached at {tried}: {error}");
            Err(CliError::new(Exit::CannotConnect, message)
                .advise("start etcd, or say where it is with --metadata; `aquifer dev` starts one"))
        }
        Err(error @ MetadataError::Denied(_)) => {
            let message = format!("etcd refuses this process: {error}");
            Err(CliError::new(Exit::Refused, message).advise(
                "set AQUIFER_ETCD_USER and AQUIFER_ETCD_PASSWORD, or etcd.user \
                 and etcd.password_file in the file of --config",
            ))
        }
        Err(error) => Err(CliError::failed(error.to_string())),
    }
}

/// Checks what can be checked without the store.
///
/// # Errors
/// Exit code 2.
pub fn check(cluster: &ClusterSection) -> Result<(), CliError> {
    aquifer_bookie::check_cluster(&cluster.name)
        .map_err(|error| CliError::usage(error.to_string()))?;
    cluster.internal_tls.check()?;
    let etcd = &cluster.etcd;
    let has_password = !etcd.password.expose().is_empty();
    let wrong = if has_password && given(&etcd.password_file).is_some() {
        "etcd.password and etcd.password_file are both given: give one"
    } else if etcd.lease_ms < LEASE_MS_MIN {
        "etcd.lease_ms must be at least 1000, or a short pause of a process would count as its end"
    } else {
        let password = match given(&etcd.password_file) {
            // It is read when it is needed; here it counts that there is one.
            Some(_) => Secret::new("in a file"),
            None => etcd.password.clone(),
        };
        let checked = etcd_config(cluster, password)?.check();
        return checked.map_err(|error| CliError::usage(error.to_string()));
    };
    Err(CliError::usage(wrong))
}

fn given(file: &Path) -> Option<&Path> {
    (!file.as_os_str().is_empty()).then_some(file)
}

/// The settings in the store's terms.
fn etcd_config(cluster: &ClusterSection, password: Secret) -> Result<EtcdConfig, CliError> {
    let etcd = &cluster.etcd;
    let file = |file: &Path| given(file).map(Path::to_owned);
    Ok(EtcdConfig {
        user: (!etcd.user.is_empty()).then(|| etcd.user.clone()),
        password: (!password.expose().is_empty()).then_some(password),
        ca_file: file(&etcd.ca_file),
        cert_file: file(&etcd.cert_file),
        key_file: file(&etcd.key_file),
        server_name: (!etcd.server_name.is_empty()).then(|| etcd.server_name.clone()),
        ..EtcdConfig::new(endpoints(&cluster.metadata)?, cluster.name.clone())
    })
}

/// The URLs of etcd's members.
fn endpoints(metadata: &str) -> Result<Vec<String>, CliError> {
    let (scheme, hosts) = match (metadata.strip_prefix(PLAIN), metadata.strip_prefix(TLS)) {
        (Some(hosts), _) => ("http", hosts),
        (_, Some(hosts)) => ("https", hosts),
        (None, None) => return Err(bad_metadata(metadata)),
    };
    let hosts: Vec<&str> = hosts.trim_end_matches('/').split(',').collect();
    let is_address = |host: &&str| {
        let port = host
            .rsplit_once(':')
            .map(|(name, port)| (name, port.parse::<u16>()));
        // What stands before an `@` would be a password, which does not belong here.
        matches!(port, Some((name, Ok(_))) if !name.is_empty()) && !host.contains(['/', '@', ' '])
    };
    if !hosts.iter().all(is_address) {
        return Err(bad_metadata(metadata));
    }
    let urls = hosts.into_iter().map(|host| format!("{scheme}://{host}"));
    Ok(urls.collect())
}

fn bad_metadata(given: &str) -> CliError {
    // It may contain a password.
    let shown = if given.contains('@') {
        "what is given"
    } else {
        given
    };
    CliError::usage(format!("{shown} is not the address of a metadata store")).advise(
        "give --metadata etcd://HOST:PORT[,HOST:PORT…]; user and password belong in AQUIFER_ETCD_USER \
         and AQUIFER_ETCD_PASSWORD or the configuration file",
    )
}

/// The password, from wherever it is.
fn password(etcd: &EtcdSettings, disk: &dyn Disk) -> Result<Secret, CliError> {
    let Some(file) = given(&etcd.password_file) else {
        return Ok(etcd.password.clone());
    };
    let bytes = disk
        .read(file)
        .map_err(|error| CliError::usage(format!("cannot read {}: {error}", file.display())))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| CliError::usage(format!("{} is not text", file.display())))?;
    Ok(Secret::new(text.trim_end_matches(['\r', '\n'])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(metadata: &str, etcd: EtcdSettings) -> ClusterSection {
        ClusterSection {
            name: "c".to_owned(),
            metadata: metadata.to_owned(),
            etcd,
            ..ClusterSection::default()
        }
    }

    #[test]
    fn a_metadata_store_has_one_or_several_addresses() {
        let urls = |text: &str| endpoints(text).unwrap();
        assert_eq!(urls("etcd://a:1"), ["http://a:1"]);
        assert_eq!(
            urls("etcds://a:1,[::1]:2"),
            ["https://a:1", "https://[::1]:2"]
        );
        for bad in [
            "",
            "a:1",
            "http://a:1",
            "etcd://",
            "etcd://a",
            "etcd://a:1,",
            "etcd://a:1/x",
        ] {
            let error = endpoints(bad).unwrap_err();
            assert!(error.advice().contains("--metadata"), "{bad}: {error}");
        }
        let error = endpoints("etcd://root:hunter2@a:1").unwrap_err();
        assert!(!format!("{error} {}", error.advice()).contains("hunter2"));
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let wrong = |metadata: &str, change: fn(&mut EtcdSettings)| {
            let mut etcd = EtcdSettings::default();
            change(&mut etcd);
            check(&cluster(metadata, etcd)).unwrap_err().to_string()
        };
        assert!(check(&cluster("etcd://a:1", EtcdSettings::default())).is_ok());
        assert!(wrong("etcd://a:1", |e| e.user = "u".to_owned()).contains("password"));
        assert!(wrong("etcd://a:1", |e| e.ca_file = "ca".into()).contains("http"));
        assert!(wrong("etcds://a:1", |e| e.cert_file = "c".into()).contains("key_file"));
        assert!(wrong("etcd://a:1", |e| e.lease_ms = 10).contains("lease_ms"));
        let both = |e: &mut EtcdSettings| {
            e.password = Secret::new("a");
            e.password_file = "b".into();
        };
        assert!(wrong("etcd://a:1", both).contains("give one"));
    }

    #[test]
    fn a_password_file_ends_with_its_line() {
        use aquifer_runtime::disk::SimDisk;
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new("/s")).unwrap();
        disk.write_atomic(Path::new("/s/p"), b"hunter2\n").unwrap();
        let mut etcd = EtcdSettings {
            password_file: "/s/p".into(),
            ..EtcdSettings::default()
        };
        assert_eq!(password(&etcd, &disk).unwrap().expose(), "hunter2");
        etcd.password_file = "/s/none".into();
        assert!(password(&etcd, &disk).is_err());
    }
}
