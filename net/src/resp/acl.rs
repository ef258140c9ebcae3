//! Users and their rights, from a file in a part of Redis' ACL language.
//!
//! ```text
//! # one user a line
//! user default off
//! user app on #<SHA-256 of the password, in hexadecimal> ~app:* %R~shared:* +@read +@write
//! user boss on >plain-password ~* +@all
//! ```
//! `~prefix*` gives a key or a prefix for reading and writing, `%R~` and `%W~` for one of them; `+@read`, `+@write` and
//! `+@admin` (what is dangerous or tells about the node) give commands, `+@all` all. Commands about the connection itself
//! need no right. A user starts without any. The file holds secrets: only its owner may read it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use ring::digest::{SHA256, digest};

use crate::error::{Error, Result};
use crate::secret::read_private;

use super::command::Spec;
use super::reply::Reply;

/// The user of a connection that has not named one.
pub(crate) const DEFAULT: &str = "default";

/// A user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub name: String,
    is_on: bool,
    needs_no_password: bool,
    digests: Vec<[u8; 32]>,
    reads: bool,
    writes: bool,
    administers: bool,
    keys: Vec<KeyRule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct KeyRule {
    prefix: Vec<u8>,
    is_exact: bool,
    reads: bool,
    writes: bool,
}

impl KeyRule {
    fn covers(&self, key: &[u8]) -> bool {
        if self.is_exact { key == self.prefix } else { key.starts_with(&self.prefix) }
    }
}

impl User {
    fn open(name: &str) -> User {
        let all = KeyRule { prefix: Vec::new(), is_exact: false, reads: true, writes: true };
        User {
            name: name.into(),
            is_on: true,
            needs_no_password: true,
            digests: Vec::new(),
            reads: true,
            writes: true,
            administers: true,
            keys: vec![all],
        }
    }

    /// Whether a connection has this user without naming it.
    pub fn is_open(&self) -> bool {
        self.is_on && self.needs_no_password
    }

    fn accepts(&self, password: &[u8]) -> bool {
        let given = digest(&SHA256, password);
        // What is compared are digests: how long it takes tells nothing of the password.
        self.is_on && (self.needs_no_password || self.digests.iter().any(|known| known == given.as_ref()))
    }

    /// Whether the user may run what is dangerous.
    pub fn administers(&self) -> bool {
        self.administers
    }

    /// Whether the user may read this key.
    pub fn may_read(&self, key: &[u8]) -> bool {
        self.reads && self.keys.iter().any(|rule| rule.reads && rule.covers(key))
    }

    /// Whether the user may run a command on its keys.
    ///
    /// # Errors
    /// The reply.
    pub fn check(&self, spec: &Spec, args: &[Bytes]) -> std::result::Result<(), Reply> {
        let needs_admin = spec.has("admin") || spec.has("dangerous");
        let may_run = (!spec.has("readonly") || self.reads)
            && (!spec.writes() || self.writes)
            && (!needs_admin || self.administers);
        if !may_run {
            return Err(Reply::Error(format!(
                "NOPERM User {} has no permissions to run the '{}' command",
                self.name, spec.name
            )));
        }
        let returns_value = spec.has("access")
            || (spec.name == "set" && args.iter().skip(3).any(|word| word.eq_ignore_ascii_case(b"get")));
        let reads = !spec.writes() || returns_value;
        let covered = |key: &[u8], reads: bool, writes: bool| {
            let given = |right: fn(&KeyRule) -> bool| self.keys.iter().any(|rule| right(rule) && rule.covers(key));
            (!reads || given(|rule| rule.reads)) && (!writes || given(|rule| rule.writes))
        };
        if spec.keys_of(args).all(|key| covered(key, reads, spec.writes())) {
            Ok(())
        } else {
            Err(Reply::error("NOPERM No permissions to access a key"))
        }
    }

    fn parse(name: &str, rules: &[&str]) -> std::result::Result<User, String> {
        let mut user = User { name: name.into(), ..User::default() };
        for rule in rules {
            match *rule {
                "on" => user.is_on = true,
                "off" => user.is_on = false,
                "nopass" => user.needs_no_password = true,
                "+@read" => user.reads = true,
                "+@write" => user.writes = true,
                "+@admin" | "+@dangerous" => user.administers = true,
                "+@all" | "allcommands" => (user.reads, user.writes, user.administers) = (true, true, true),
                "allkeys" => user.keys.push(key_rule("*", true, true)),
                rule => {
                    if let Some(password) = rule.strip_prefix('>').filter(|password| !password.is_empty()) {
                        user.digests.push(sha256(password.as_bytes()));
                    } else if let Some(hex) = rule.strip_prefix('#') {
                        user.digests.push(parse_digest(hex).ok_or("a password's digest has 64 hexadecimal digits")?);
                    } else if let Some(prefix) = rule.strip_prefix('~') {
                        user.keys.push(key_rule(prefix, true, true));
                    } else if let Some(prefix) = rule.strip_prefix("%R~") {
                        user.keys.push(key_rule(prefix, true, false));
                    } else if let Some(prefix) = rule.strip_prefix("%W~") {
                        user.keys.push(key_rule(prefix, false, true));
                    } else {
                        // The rule may be a password with a missing sign: it is not repeated.
                        return Err("a rule is none of on, off, nopass, >password, #digest, ~prefix*, %R~prefix*, \
                                    %W~prefix*, allkeys, +@read, +@write, +@admin, +@all"
                            .into());
                    }
                }
            }
        }
        if user.keys.iter().any(|rule| rule.prefix.contains(&b'*')) {
            return Err("a * stands at the end of a prefix only".into());
        }
        Ok(user)
    }

    /// The user's rules, passwords left out.
    pub fn describe(&self) -> String {
        let mut words = vec!["user".into(), self.name.clone(), if self.is_on { "on" } else { "off" }.to_string()];
        words.extend(self.needs_no_password.then(|| "nopass".to_string()));
        for rule in &self.keys {
            let sign = match (rule.reads, rule.writes) {
                (true, true) => "~",
                (true, false) => "%R~",
                _ => "%W~",
            };
            let star = if rule.is_exact { "" } else { "*" };
            words.push(format!("{sign}{}{star}", String::from_utf8_lossy(&rule.prefix)));
        }
        for (has, word) in [(self.reads, "+@read"), (self.writes, "+@write"), (self.administers, "+@admin")] {
            words.extend(has.then(|| word.to_string()));
        }
        words.join(" ")
    }
}

fn key_rule(pattern: &str, reads: bool, writes: bool) -> KeyRule {
    let prefix = pattern.strip_suffix('*');
    KeyRule { prefix: prefix.unwrap_or(pattern).into(), is_exact: prefix.is_none(), reads, writes }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

fn parse_digest(hex: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    for (index, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(out)
}

/// The users of a host.
///
/// # Example
/// ```
/// use antumbra_net::resp::Users;
/// use std::os::unix::fs::PermissionsExt;
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("users");
/// std::fs::write(&path, "user default off\nuser boss on >secret ~* +@all\n")?;
/// assert!(Users::load(&path).is_err(), "others may read it");
/// std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
/// assert_eq!(Users::load(&path)?.path(), Some(&*path));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Users {
    by_name: BTreeMap<String, Arc<User>>,
    path: Option<PathBuf>,
}

impl Default for Users {
    /// One user, `default`, who may do everything without a password.
    fn default() -> Users {
        Users { by_name: BTreeMap::from([(DEFAULT.into(), Arc::new(User::open(DEFAULT)))]), path: None }
    }
}

impl Users {
    /// Reads a file. Without a line for it, `default` is off.
    ///
    /// # Errors
    /// [`Error::Refused`] with file and line; also for a file that others than its owner may read.
    pub fn load(path: &Path) -> Result<Users> {
        let refuse = |what: String| Error::Refused { what: format!("{}: {what}", path.display()) };
        let mut users = Users::parse(&read_private(path)?).map_err(refuse)?;
        users.path = Some(path.into());
        Ok(users)
    }

    fn parse(text: &str) -> std::result::Result<Users, String> {
        let mut by_name = BTreeMap::new();
        for (line, text) in text.lines().enumerate() {
            let words: Vec<&str> = text.split_whitespace().collect();
            let user = match words.as_slice() {
                [] => continue,
                [first, ..] if first.starts_with('#') => continue,
                ["user", name, rules @ ..] => User::parse(name, rules),
                _ => Err("a line begins with 'user' and a name, or with #".into()),
            };
            let user = user.map_err(|what| format!("line {}: {what}", line + 1))?;
            let name = user.name.clone();
            if by_name.insert(name.clone(), Arc::new(user)).is_some() {
                return Err(format!("line {}: user {name} is there twice", line + 1));
            }
        }
        by_name.entry(DEFAULT.into()).or_insert_with(|| Arc::new(User { name: DEFAULT.into(), ..User::default() }));
        Ok(Users { by_name, path: None })
    }

    /// The file that they were read from.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Arc<User>> {
        self.by_name.get(name)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<User>> {
        self.by_name.values()
    }

    /// The user of a connection before it names one.
    pub(crate) fn unnamed(&self) -> Option<Arc<User>> {
        self.find(DEFAULT).filter(|user| user.is_open()).cloned()
    }

    /// The user with this password.
    pub(crate) fn authenticate(&self, name: &[u8], password: &[u8]) -> std::result::Result<Arc<User>, Reply> {
        let user = std::str::from_utf8(name).ok().and_then(|name| self.find(name));
        // A name that is not there takes as long as a wrong password.
        let nobody = User::default();
        match (user, user.map_or(&nobody, |user| user.as_ref()).accepts(password)) {
            (Some(user), true) => Ok(Arc::clone(user)),
            _ => Err(Reply::error("WRONGPASS invalid username-password pair or user is disabled.")),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::command;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const FILE: &str = "# users\nuser app on >secret ~app:* %R~shared:* ~one +@read +@write\n\nuser boss on \
        #2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b allkeys +@all\nuser gone off nopass ~* +@all\n";

    fn check(user: &User, words: &[&'static str]) -> bool {
        let args: Vec<Bytes> = words.iter().map(|word| Bytes::from_static(word.as_bytes())).collect();
        let (_, spec) = command::find(&args).unwrap();
        user.check(spec, &args).is_ok()
    }

    #[test]
    fn authenticate_takes_the_right_password_of_a_user_who_is_on() {
        let users = Users::parse(FILE).unwrap();
        let is = |name: &str, password: &str| users.authenticate(name.as_bytes(), password.as_bytes()).is_ok();
        assert!(is("app", "secret") && !is("app", "Secret") && !is("app", "") && !is("nobody", "secret"));
        assert!(is("boss", "secret"), "by digest");
        assert!(!is("gone", "x") && !is(DEFAULT, "") && users.unnamed().is_none(), "off");
        assert!(Users::default().unnamed().is_some());
    }

    #[test]
    fn check_follows_commands_and_prefixes() {
        let users = Users::parse(FILE).unwrap();
        let app = users.find("app").unwrap();
        assert!(check(app, &["get", "app:1"]) && check(app, &["set", "app:1", "v"]) && check(app, &["get", "one"]));
        assert!(!check(app, &["get", "apple"]) && !check(app, &["get", "one2"]));
        assert!(check(app, &["get", "shared:1"]) && !check(app, &["set", "shared:1", "v"]));
        assert!(!check(app, &["mget", "app:1", "other"]) && check(app, &["mget", "app:1", "shared:2"]));
        assert!(!check(app, &["flushdb"]) && !check(app, &["config", "get", "*"]) && check(app, &["ping"]));
        assert!(check(users.find("boss").unwrap(), &["config", "get", "*"]));
        let writer = User::parse("w", &["on", "%W~*", "+@write"]).unwrap();
        assert!(check(&writer, &["set", "a", "v"]) && !check(&writer, &["set", "a", "v", "GET"]));
        assert!(!check(&writer, &["incr", "a"]) && !check(&writer, &["get", "a"]), "they return what is there");
    }

    #[test]
    fn parse_wrong_lines_are_named() {
        for (text, what) in [
            ("user a on secret", "line 1"),
            ("\nnonsense", "line 2"),
            ("user a on\nuser a off", "twice"),
            ("user a ~a*b", "end of a prefix"),
            ("user a #12", "64"),
        ] {
            let error = Users::parse(text).unwrap_err();
            assert!(error.contains(what) && !error.contains("secret"), "{text:?}: {error}");
        }
    }

    #[test]
    fn load_readable_by_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users");
        std::fs::write(&path, FILE).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Users::load(&path).unwrap_err().to_string().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(Users::load(&path).unwrap().all().count(), 4);
    }
}
