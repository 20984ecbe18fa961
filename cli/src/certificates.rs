//! Certificates that this program makes: for development, and for clusters that have no authority
//! of their own.
//!
//! Files of a directory: `ca.pem` and `ca.key`; `server` for the ports of clients; `broker`,
//! `bookie`, `autorecovery`, `offloader` and `tool` for connections inside the cluster;
//! `user-NAME`. Each has a `.pem` and a `.key`.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aquifer_runtime::clock::{Clock as _, SystemClock};
use aquifer_runtime::net::tls::InternalName;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;

use crate::exit::CliError;
use crate::roles::tls::ROLES;

/// Names at which every machine reaches itself.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
const DAY_S: u64 = 86_400;
/// Clocks of other machines may be behind this one.
const BACKDATED_S: u64 = 3_600;

/// What is to be made.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Where files go.
    pub dir: PathBuf,
    /// The cluster whose processes are certified.
    pub cluster: String,
    /// Host names and addresses of servers, besides those of this machine.
    pub hosts: Vec<String>,
    /// Users.
    pub users: Vec<String>,
    /// How long certificates are valid, in days.
    pub days: u32,
    /// Make those again that exist.
    pub renew: bool,
}

/// A certificate file, and whether it was made now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The file.
    pub path: PathBuf,
    /// False: it was there, and stays.
    pub made: bool,
}

/// Makes what does not exist, and with `renew` everything but the authority.
///
/// # Errors
/// When a name is not possible, or a file cannot be read or written.
pub fn make(request: &Request) -> Result<Vec<Outcome>, CliError> {
    let wanted = wanted(request)?;
    fs::create_dir_all(&request.dir).map_err(|error| unwritable(&request.dir, &error))?;
    let maker = Maker {
        dir: &request.dir,
        now_s: SystemClock.wall_ms() / 1_000,
        days: u64::from(request.days),
    };
    let (issuer, is_new) = maker.authority(&request.cluster)?;
    let mut outcomes = vec![Outcome {
        path: maker.path("ca", "pem"),
        made: is_new,
    }];
    for one in &wanted {
        let path = maker.path(&one.file, "pem");
        let exists = path.exists() && maker.path(&one.file, "key").exists();
        let made = request.renew || is_new || !exists;
        if made {
            maker.certificate(&issuer, one)?;
        }
        outcomes.push(Outcome { path, made });
    }
    Ok(outcomes)
}

/// What a certificate is to be for.
struct Wanted {
    file: String,
    subject: String,
    hosts: Vec<String>,
    uri: Option<String>,
    serves: bool,
}

/// All certificates that are asked for.
fn wanted(args: &Request) -> Result<Vec<Wanted>, CliError> {
    let given = args.hosts.iter().cloned();
    let hosts: Vec<String> = LOCAL.map(str::to_owned).into_iter().chain(given).collect();
    let mut all = vec![Wanted {
        file: "server".to_owned(),
        subject: format!("Aquifer server of {}", args.cluster),
        hosts: hosts.clone(),
        uri: None,
        serves: true,
    }];
    for role in ROLES {
        let uri = format!("spiffe://{}.aquifer/{role}/{role}", args.cluster);
        if uri.parse::<InternalName>().is_err() {
            let text = format!("{} is no name of a cluster", args.cluster);
            return Err(CliError::usage(text).advise("use letters, digits, `-`, `_` and `.`"));
        }
        all.push(Wanted {
            file: role.to_owned(),
            subject: format!("Aquifer {role} of {}", args.cluster),
            hosts: hosts.clone(),
            uri: Some(uri),
            serves: true,
        });
    }
    for user in &args.users {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if user.is_empty() || !user.bytes().all(is_name) {
            let text = format!("{user:?} cannot be the name of a user here");
            return Err(CliError::usage(text).advise("use letters, digits, `-` and `_`"));
        }
        all.push(Wanted {
            file: format!("user-{user}"),
            subject: format!("Aquifer user {user}"),
            hosts: Vec::new(),
            uri: Some(format!("spiffe://{}/user/{user}", args.cluster)),
            serves: false,
        });
    }
    Ok(all)
}

/// Makes certificates in a directory.
struct Maker<'a> {
    dir: &'a Path,
    now_s: u64,
    days: u64,
}

impl Maker<'_> {
    fn path(&self, name: &str, end: &str) -> PathBuf {
        self.dir.join(format!("{name}.{end}"))
    }

    /// The authority that is there, or a new one; and whether it is new.
    fn authority(&self, cluster: &str) -> Result<(Issuer<'static, KeyPair>, bool), CliError> {
        let (cert, key) = (self.path("ca", "pem"), self.path("ca", "key"));
        match (cert.exists(), key.exists()) {
            (true, true) => {
                let read = |path: &Path| {
                    fs::read_to_string(path).map_err(|error| unreadable(path, &error))
                };
                let key =
                    KeyPair::from_pem(&read(&key)?).map_err(|error| unusable(&key, &error))?;
                let issuer = Issuer::from_ca_cert_pem(&read(&cert)?, key);
                Ok((issuer.map_err(|error| unusable(&cert, &error))?, false))
            }
            (true, false) => Err(CliError::failed(format!(
                "{} is there without its key {}",
                cert.display(),
                key.display()
            ))
            .advise("give a directory with both, or an empty one")),
            (false, _) => {
                let pair = self.key("ca")?;
                let mut params = self.params(&format!("Aquifer authority of {cluster}"), 10)?;
                params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
                let made = params
                    .self_signed(&pair)
                    .map_err(|error| not_made(&error))?;
                self.write("ca", "pem", &made.pem())?;
                Ok((Issuer::new(params, pair), true))
            }
        }
    }

    fn certificate(&self, issuer: &Issuer<'_, KeyPair>, one: &Wanted) -> Result<(), CliError> {
        let pair = self.key(&one.file)?;
        let mut params = self.params(&one.subject, 1)?;
        for host in &one.hosts {
            let name = match host.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(host.as_str().try_into().map_err(|_| {
                    CliError::usage(format!("{host:?} is no host name and no address"))
                })?),
            };
            params.subject_alt_names.push(name);
        }
        if let Some(uri) = &one.uri {
            let uri = uri.as_str().try_into().map_err(|error| not_made(&error))?;
            params.subject_alt_names.push(SanType::URI(uri));
        }
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if one.serves {
            params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
        }
        let made = params
            .signed_by(&pair, issuer)
            .map_err(|error| not_made(&error))?;
        self.write(&one.file, "pem", &made.pem())
    }

    /// What all certificates have: a subject, for people, and their time.
    fn params(&self, subject: &str, times: u64) -> Result<CertificateParams, CliError> {
        let at = |seconds: u64| {
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
            OffsetDateTime::from_unix_timestamp(seconds)
                .map_err(|error| CliError::failed(format!("the clock is wrong: {error}")))
        };
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, subject);
        params.not_before = at(self.now_s.saturating_sub(BACKDATED_S))?;
        params.not_after = at(self.now_s + self.days * times * DAY_S)?;
        Ok(params)
    }

    /// A new key, in its file.
    fn key(&self, name: &str) -> Result<KeyPair, CliError> {
        let pair = KeyPair::generate().map_err(|error| not_made(&error))?;
        self.write(name, "key", &pair.serialize_pem())?;
        Ok(pair)
    }

    /// Writes a file in one step, so that a process that reloads never sees a part of it. Only the
    /// owner can read a key.
    fn write(&self, name: &str, end: &str, text: &str) -> Result<(), CliError> {
        let mode = match end {
            "key" => 0o600,
            _ => 0o644,
        };
        let (path, new) = (self.path(name, end), self.path(name, &format!("{end}.new")));
        let written = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&new)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .and_then(|()| fs::rename(&new, &path));
        written.map_err(|error| unwritable(&path, &error))
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> CliError {
    CliError::failed(format!("cannot read {}: {error}", path.display()))
}

fn unwritable(path: &Path, error: &std::io::Error) -> CliError {
    CliError::failed(format!("cannot write {}: {error}", path.display()))
}

fn unusable(path: &Path, error: &rcgen::Error) -> CliError {
    CliError::failed(format!("{} cannot be used: {error}", path.display()))
}

fn not_made(error: &rcgen::Error) -> CliError {
    CliError::failed(format!("a certificate cannot be made: {error}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use aquifer_runtime::net::tls::{ServerTls, ServerTlsConfig, describe};

    use super::*;

    fn request(dir: &Path) -> Request {
        Request {
            dir: dir.to_owned(),
            cluster: "east".to_owned(),
            hosts: vec!["b1.example".to_owned(), "10.0.0.7".to_owned()],
            users: vec!["alice".to_owned()],
            days: 30,
            renew: false,
        }
    }

    #[test]
    fn what_is_made_is_usable_and_what_exists_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        make(&request(dir.path())).unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in [
            "ca",
            "server",
            "broker",
            "bookie",
            "autorecovery",
            "offloader",
            "tool",
            "user-alice",
        ] {
            let mode = fs::metadata(path(&format!("{name}.key")))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let broker = describe(&path("broker.pem")).unwrap().remove(0);
        for name in [
            "localhost",
            "10.0.0.7",
            "b1.example",
            "spiffe://east.aquifer/broker/broker",
        ] {
            assert!(broker.names.iter().any(|has| has == name), "{name}");
        }
        assert!(!broker.is_authority);
        assert!(describe(&path("ca.pem")).unwrap()[0].is_authority);
        assert_eq!(broker.expires_s - broker.begins_s, 30 * DAY_S + BACKDATED_S);
        let files = ServerTlsConfig {
            cert_file: Some(path("server.pem")),
            key_file: Some(path("server.key")),
            ..ServerTlsConfig::default()
        };
        let loaded = ServerTls::http2("test", &files, SystemClock::shared()).unwrap();
        assert!(loaded.is_some());

        let read = |name: &str| fs::read(path(name)).unwrap();
        let before = (read("ca.pem"), read("server.pem"));
        make(&request(dir.path())).unwrap();
        assert_eq!((read("ca.pem"), read("server.pem")), before);
        let renewed = Request {
            renew: true,
            ..request(dir.path())
        };
        make(&renewed).unwrap();
        assert_eq!(read("ca.pem"), before.0);
        assert_ne!(read("server.pem"), before.1);
    }

    #[test]
    fn names_that_are_none_and_an_authority_without_its_key_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |change: fn(&mut Request)| {
            let mut request = request(dir.path());
            change(&mut request);
            make(&request).unwrap_err().to_string()
        };
        assert!(refused(|request| request.cluster = "a/b".to_owned()).contains("a/b"));
        assert!(refused(|request| request.users = vec!["../x".to_owned()]).contains("../x"));
        assert!(refused(|request| request.hosts = vec!["ü".to_owned()]).contains('ü'));
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(refused(|_| ()).contains("without its key"));
    }
}
