//! A name server by dynamic updates (RFC 2136) that are signed (TSIG, RFC 8945), over TCP.
//!
//! | name below the zone | type | value |
//! |---|---|---|
//! | `partition-7` | A or AAAA | the owner's address |
//! | `partition-7` | TXT | `epoch=12` |
//! | `_redis._tcp.partition-7` | SRV | the owner's port and name |
//! | `host-2` | A or AAAA | the host's address |
//! | `_redis._tcp` | SRV | every host's port and name: where to begin |
//!
//! - `INV-EPOCH`: a partition's names change in one update whose prerequisite is the TXT record as it was read, and never to an
//!   older epoch. A publisher that is late gets NXRRSET.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::tsig::TsigAlgorithm;
use hickory_proto::rr::rdata::{SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, TSigner};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::error::{Error, Result};
use crate::secret::read_private;

use super::Sink;
use super::backlog::Entry;

/// Seconds that the clocks of both ends may differ by.
const FUDGE_S: u16 = 300;

/// One zone of one name server.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    /// The zone's primary server.
    pub server: SocketAddr,
    /// The zone.
    pub zone: String,
    /// The key that signs updates: a file as `tsig-keygen` writes it, mode 600.
    pub tsig_file: PathBuf,
    /// How long others may keep an answer.
    pub ttl_s: u32,
    /// Tell the hosts' addresses for TLS, where they have one.
    pub tls: bool,
}

pub(super) struct Dns {
    server: SocketAddr,
    zone: Name,
    ttl_s: u32,
    tls: bool,
    signer: TSigner,
}

impl Dns {
    /// # Errors
    /// [`Error::Refused`] when the zone is no name or the key cannot be read.
    pub fn new(config: DnsConfig) -> Result<Dns> {
        let refuse = |what: String| Error::Refused { what };
        let mut zone =
            Name::from_ascii(&config.zone).map_err(|cause| refuse(format!("DNS zone {}: {cause}", config.zone)))?;
        zone.set_fqdn(true);
        let path = config.tsig_file.display();
        let signer = parse_key(&read_private(&config.tsig_file)?).map_err(|what| refuse(format!("{path}: {what}")))?;
        Ok(Dns { server: config.server, zone, ttl_s: config.ttl_s, tls: config.tls, signer })
    }

    /// A name below the zone.
    fn name_of(&self, labels: &str) -> std::result::Result<Name, String> {
        let name = Name::from_ascii(labels).and_then(|name| name.append_domain(&self.zone));
        name.map_err(|cause| cause.to_string())
    }

    fn record(&self, name: &Name, data: RData) -> Record {
        Record::from_rdata(name.clone(), self.ttl_s, data)
    }

    fn service(&self, name: &Name, host: u32, port: u16) -> std::result::Result<Record, String> {
        let host = self.name_of(&format!("host-{host}"))?;
        Ok(self.record(name, RData::SRV(SRV::new(0, 0, port, host))))
    }

    async fn publish_hosts(
        &self,
        link: &mut TcpStream,
        hosts: &[(u32, SocketAddr)],
    ) -> std::result::Result<(), String> {
        let services = self.name_of("_redis._tcp")?;
        let mut sets = vec![Set::new(&services, RecordType::SRV)];
        for (host, address) in hosts {
            sets[0].records.push(self.service(&services, *host, address.port())?);
            let name = self.name_of(&format!("host-{host}"))?;
            sets.extend(addresses(&name, address.ip(), |data| self.record(&name, data)));
        }
        if self.says(link, &sets).await? {
            return Ok(());
        }
        self.replace(link, &[], &sets).await
    }

    async fn publish_partition(
        &self,
        link: &mut TcpStream,
        partition: u64,
        epoch: u64,
        owner: u32,
        address: SocketAddr,
    ) -> std::result::Result<Option<u64>, String> {
        let name = self.name_of(&format!("partition-{partition}"))?;
        let services = self.name_of(&format!("_redis._tcp.partition-{partition}"))?;
        let known = self.ask(link, &name, RecordType::TXT).await?;
        let newest = known.iter().filter_map(epoch_of).max();
        if let Some(newest) = newest.filter(|newest| *newest > epoch) {
            return Ok(Some(newest));
        }
        let mut sets: Vec<Set> = addresses(&name, address.ip(), |data| self.record(&name, data)).into();
        sets.push(Set {
            name: services.clone(),
            of: RecordType::SRV,
            records: vec![self.service(&services, owner, address.port())?],
        });
        let text = self.record(&name, RData::TXT(TXT::new(vec![format!("epoch={epoch}")])));
        sets.push(Set { name: name.clone(), of: RecordType::TXT, records: vec![text] });
        if newest == Some(epoch) && self.says(link, &sets).await? {
            return Ok(None);
        }
        let mut prerequisites = known;
        prerequisites.iter_mut().for_each(|record| record.ttl = 0);
        if prerequisites.is_empty() {
            let mut none = Record::update0(name.clone(), 0, RecordType::TXT);
            none.dns_class = DNSClass::NONE;
            prerequisites.push(none);
        }
        self.replace(link, &prerequisites, &sets).await.map(|()| None)
    }

    /// Whether the server has just these records.
    async fn says(&self, link: &mut TcpStream, sets: &[Set]) -> std::result::Result<bool, String> {
        for set in sets {
            let mut found: Vec<_> =
                self.ask(link, &set.name, set.of).await?.into_iter().map(|record| record.data).collect();
            let mut wanted: Vec<_> = set.records.iter().map(|record| record.data.clone()).collect();
            found.sort();
            wanted.sort();
            if found != wanted {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn ask(&self, link: &mut TcpStream, name: &Name, of: RecordType) -> std::result::Result<Vec<Record>, String> {
        let mut message = Message::query();
        let mut query = Query::query(name.clone(), of);
        query.set_query_class(DNSClass::IN);
        message.add_query(query);
        let answer = self.exchange(link, message, false).await?;
        match answer.response_code {
            ResponseCode::NoError | ResponseCode::NXDomain => {
                let is_it = |record: &Record| record.name == *name && record.record_type() == of;
                Ok(answer.answers.into_iter().filter(is_it).collect())
            }
            code => Err(format!("{of} of {name}: {code}")),
        }
    }

    /// Replaces the sets, if the prerequisites hold, in one step, and sees that it has been done.
    async fn replace(
        &self,
        link: &mut TcpStream,
        prerequisites: &[Record],
        sets: &[Set],
    ) -> std::result::Result<(), String> {
        let mut message = Message::new(fastrand::u16(..), MessageType::Query, OpCode::Update);
        let mut zone = Query::query(self.zone.clone(), RecordType::SOA);
        zone.set_query_class(DNSClass::IN);
        message.add_query(zone);
        message.answers.extend_from_slice(prerequisites);
        for set in sets {
            let mut all = Record::update0(set.name.clone(), 0, set.of);
            all.dns_class = DNSClass::ANY;
            message.authorities.push(all);
            message.authorities.extend_from_slice(&set.records);
        }
        let answer = self.exchange(link, message, true).await?;
        match answer.response_code {
            ResponseCode::NoError if self.says(link, sets).await? => Ok(()),
            ResponseCode::NoError => Err("the server took the update, but does not say so".into()),
            ResponseCode::NXRRSet | ResponseCode::YXRRSet => {
                Err(format!("{}: another publisher was first", answer.response_code))
            }
            ResponseCode::NotAuth => Err(format!(
                "NOTAUTH: the server does not know key {} (or its clock differs), or is not the primary of {}",
                self.signer.signer_name(),
                self.zone
            )),
            ResponseCode::Refused => {
                Err(format!("REFUSED: key {} may not update zone {}", self.signer.signer_name(), self.zone))
            }
            code => Err(format!("update of {}: {code}", self.zone)),
        }
    }

    async fn exchange(
        &self,
        link: &mut TcpStream,
        mut message: Message,
        signed: bool,
    ) -> std::result::Result<Message, String> {
        let explain = |cause: std::io::Error| cause.to_string();
        let mut verifier = None;
        if signed {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            verifier = message.finalize(&self.signer, now).map_err(|cause| cause.to_string())?;
        }
        let bytes = message.to_vec().map_err(|cause| cause.to_string())?;
        let len = u16::try_from(bytes.len()).map_err(|_| "more records than fit a message".to_string())?;
        link.write_all(&[&len.to_be_bytes(), bytes.as_slice()].concat()).await.map_err(explain)?;
        let len = link.read_u16().await.map_err(explain)?;
        let mut bytes = vec![0; usize::from(len)];
        link.read_exact(&mut bytes).await.map_err(explain)?;
        let answer = Message::from_vec(&bytes).map_err(|cause| cause.to_string())?;
        if answer.id != message.id {
            return Err("the answer is to another question".into());
        }
        // A server that does not know the key cannot sign its refusal. Everything else has to be signed.
        if let Some(verifier) = &mut verifier
            && answer.response_code != ResponseCode::NotAuth
        {
            verifier
                .verify(&bytes)
                .map_err(|cause| format!("{} with a bad signature: {cause}", answer.response_code))?;
        }
        Ok(answer)
    }
}

impl Sink for Dns {
    fn name(&self) -> String {
        format!("dns {} {}", self.server, self.zone)
    }

    fn tls(&self) -> bool {
        self.tls
    }

    fn takes(&self, _: &Entry) -> bool {
        true
    }

    async fn publish(&mut self, entry: &Entry) -> std::result::Result<String, String> {
        let mut link = TcpStream::connect(self.server).await.map_err(|cause| cause.to_string())?;
        match entry {
            Entry::Hosts(hosts) => self.publish_hosts(&mut link, hosts).await.map(|()| entry.wanted()),
            Entry::Partition { partition, epoch, owner, address } => {
                let newer = self.publish_partition(&mut link, *partition, *epoch, *owner, *address).await?;
                Ok(newer.map_or_else(|| entry.wanted(), |newer| format!("epoch {newer}, which is newer")))
            }
        }
    }
}

/// All records of one name and type.
struct Set {
    name: Name,
    of: RecordType,
    records: Vec<Record>,
}

impl Set {
    fn new(name: &Name, of: RecordType) -> Set {
        Set { name: name.clone(), of, records: Vec::new() }
    }
}

/// The address, and that there is none of the other kind.
fn addresses(name: &Name, ip: IpAddr, record: impl Fn(RData) -> Record) -> [Set; 2] {
    let mut sets = [Set::new(name, RecordType::A), Set::new(name, RecordType::AAAA)];
    match ip {
        IpAddr::V4(ip) => sets[0].records.push(record(RData::A(ip.into()))),
        IpAddr::V6(ip) => sets[1].records.push(record(RData::AAAA(ip.into()))),
    }
    sets
}

fn epoch_of(record: &Record) -> Option<u64> {
    match &record.data {
        RData::TXT(text) => std::str::from_utf8(text.txt_data.first()?).ok()?.strip_prefix("epoch=")?.parse().ok(),
        _ => None,
    }
}

/// Reads `key "NAME" { algorithm hmac-sha256; secret "BASE64"; };`.
fn parse_key(text: &str) -> std::result::Result<TSigner, String> {
    let wrong =
        || "no key as tsig-keygen writes it: key \"NAME\" { algorithm hmac-sha256; secret \"..\"; };".to_string();
    let words: Vec<&str> =
        text.split(|c: char| c.is_whitespace() || "{};\"".contains(c)).filter(|word| !word.is_empty()).collect();
    let value = |name: &str| {
        let at = words.iter().position(|word| *word == name).ok_or_else(wrong)?;
        words.get(at + 1).copied().ok_or_else(wrong)
    };
    let algorithm = match value("algorithm")?.to_ascii_lowercase().as_str() {
        "hmac-sha256" => TsigAlgorithm::HmacSha256,
        "hmac-sha384" => TsigAlgorithm::HmacSha384,
        "hmac-sha512" => TsigAlgorithm::HmacSha512,
        other => return Err(format!("algorithm {other}: hmac-sha256, hmac-sha384 or hmac-sha512")),
    };
    let secret = data_encoding::BASE64.decode(value("secret")?.as_bytes()).map_err(|_| wrong())?;
    let name = Name::from_ascii(value("key")?).map_err(|_| wrong())?;
    TSigner::new(secret, algorithm, name, FUDGE_S).map_err(|cause| cause.to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn parse_key_reads_what_tsig_keygen_writes_and_names_what_is_wrong() {
        let text =
            "key \"cluster\" {\n\talgorithm hmac-sha256;\n\tsecret \"c2VjcmV0IG9mIDMyIGJ5dGVzIGF0IGxlYXN0ISE=\";\n};\n";
        let signer = parse_key(text).unwrap();
        assert_eq!(signer.signer_name().to_string(), "cluster.");
        assert_eq!(signer.key(), b"secret of 32 bytes at least!!");
        let refused = |text: &str| parse_key(text).err().unwrap();
        assert!(refused(&text.replace("sha256", "md5")).contains("hmac-md5"));
        assert!(refused(&text.replace("c2V", "%%%")).contains("tsig-keygen"));
        assert!(refused("").contains("tsig-keygen"));
        assert!(!refused(&text.replace("c2V", "%%%")).contains("jcmV0"), "no secret in a message");
    }
}
