//! One node under attack.

use super::{AttackArgs, GOT_THROUGH, NOT_TRIED, REFUSED, Tried, UNCLEAR, forge::Forge};
use crate::{
    Context,
    error::{Error, Kind, Result},
    output::{count, printable},
    session::{As, Session, node_error, now, sign_error},
};
use bulkhead_core::{
    AppName, ImageId, NodeName, ServiceName, SignedText,
    fleet::FleetNode,
    notice::{HEARTBEAT_NAMESPACE, Heartbeat, REVOCATION_NAMESPACE, Revocation, Revoked},
    order::NAMESPACE,
    policy::{NAMESPACE as POLICY_NAMESPACE, Policy, Role},
    statement::{NAMESPACE as GREEN_NAMESPACE, Predicate, Statement, TestResult},
};
use bulkhead_fleet::{
    ConnectError, NodeClient, NodeError,
    sign::Signer,
    ssh::attempt::{Attempt, FileRequest, Guard, Outcome, greet, knock},
};
use bulkhead_trust::sshsig::{PrivateKey, PublicKey};
use bulkhead_wire::{ACCOUNT, Ask, DROP_ACCOUNT, FailureKind, NodeStatus, Paper, Submit, View};
use std::time::Duration;

/// Ports above 1,024 that programs for running servers listen on.
const WELL_KNOWN: [u16; 40] = [
    1080, 1433, 2019, 2049, 2222, 2375, 2376, 2379, 2380, 3000, 3128, 3306, 4222, 4646, 4647, 4648, 5000, 5432, 5672,
    5984, 6379, 6443, 7946, 8000, 8080, 8200, 8300, 8443, 8500, 8888, 9000, 9090, 9092, 9100, 9200, 10250, 10255,
    11211, 27017, 51820,
];
/// The address at which machines of providers ask for their user data.
const METADATA: &str = "169.254.169.254";
/// A node that waits for more has let the question in.
const PATIENCE: Duration = Duration::from_secs(15);
/// An app that is not there.
const NO_APP: &str = "bulkhead-attack";

/// A key that no policy lists. It need not be secret: all that counts is that nobody gave it a role.
fn stranger() -> PrivateKey {
    PrivateKey::from_seed([0xA7; 32])
}

/// What this machine holds.
pub(super) struct Keys {
    /// A release key, or why none can be used.
    release: std::result::Result<Signer, String>,
    /// Whether that key has the role of stating images green besides.
    release_is_green: bool,
    green: std::result::Result<Signer, String>,
    /// Whether that key has the role of signing orders besides.
    green_is_release: bool,
    /// The roles by which a key at hand may connect.
    roles: Vec<Role>,
}

impl Keys {
    pub(super) async fn of(session: &Session, touch: bool) -> Result<Self> {
        let policy = &session.policy.policy;
        let find = async |role: Role| {
            let keys: Vec<&str> = policy.holders(role).map(|(_, key)| key.key.as_str()).collect();
            if keys.is_empty() {
                return Err(format!("the policy gives nobody the role {}", role.as_str()));
            }
            let found = Signer::find_all(&session.identities, keys).await;
            let mut found = found.map_err(|_| format!("no key with the role {} at hand", role.as_str()))?;
            let needs_touch = |signer: &Signer| signer.public_key().kind().starts_with("sk-");
            found.sort_by_key(needs_touch);
            let best = found.swap_remove(0);
            if needs_touch(&best) && !touch {
                return Err("each signature wants a touch: `--touch` tries it".to_owned());
            }
            Ok(best)
        };
        let release = find(Role::Release).await;
        let green = find(Role::Green).await;
        let mut roles = Vec::new();
        for role in [Role::Courier, Role::Observe, Role::Operate] {
            let keys: Vec<&str> = policy.holders(role).map(|(_, key)| key.key.as_str()).collect();
            if !keys.is_empty() && Signer::find_all(&session.identities, keys).await.is_ok() {
                roles.push(role);
            }
        }
        let has_too = |found: &std::result::Result<Signer, String>, role: Role| {
            found.as_ref().is_ok_and(|signer| {
                let is_own = |key: &str| PublicKey::parse(key).is_ok_and(|key| key == *signer.public_key());
                policy.holders(role).any(|(_, key)| is_own(&key.key))
            })
        };
        let release_is_green = has_too(&release, Role::Green);
        let green_is_release = has_too(&green, Role::Release);
        Ok(Self { release, release_is_green, green, green_is_release, roles })
    }
}

/// One node under attack.
pub(super) struct Siege<'a> {
    pub(super) context: &'a Context,
    pub(super) session: &'a Session,
    pub(super) args: &'a AttackArgs,
    pub(super) name: &'a NodeName,
    pub(super) node: &'a FleetNode,
    pub(super) keys: &'a Keys,
    pub(super) tried: Vec<Tried>,
}

impl Siege<'_> {
    fn note(&mut self, holding: &str, attack: impl Into<String>, outcome: Outcome) {
        self.note_with_rule(holding, attack, outcome, None);
    }

    fn note_with_rule(&mut self, holding: &str, attack: impl Into<String>, outcome: Outcome, rule: Option<String>) {
        let (outcome, by, said) = match outcome {
            Outcome::Refused { by, said } => (REFUSED, Some(by.to_string()), said),
            Outcome::Granted(said) => (GOT_THROUGH, None, said),
            Outcome::Unclear(said) => (UNCLEAR, None, said),
        };
        self.tried.push(Tried {
            node: self.name.to_string(),
            holding: holding.into(),
            attack: attack.into(),
            outcome: outcome.into(),
            by,
            rule,
            said,
        });
    }

    fn leave(&mut self, holding: &str, attack: impl Into<String>, why: impl Into<String>) {
        self.tried.push(Tried {
            node: self.name.to_string(),
            holding: holding.into(),
            attack: attack.into(),
            outcome: NOT_TRIED.into(),
            by: None,
            rule: None,
            said: why.into(),
        });
    }

    /// Fails where the node cannot be reached at all.
    pub(super) async fn all(&mut self) -> Result<()> {
        self.say("ports");
        self.ports().await?;
        let accounts = [(Role::Courier, As::Courier), (Role::Observe, As::Observer), (Role::Operate, As::Operator)];
        for (role, who) in accounts {
            let account = who.account();
            if !self.keys.roles.contains(&role) {
                self.leave(account, "shells, forwarding, requests", format!("no key with the role {}", role.as_str()));
                continue;
            }
            self.say(account);
            let mut client = self.connect(account).await?;
            self.attempts(account, &mut client, OF_ANY_ACCOUNT.into_iter().chain(OF_THE_GATE)).await?;
            self.requests(who, &client).await;
            if who == As::Courier {
                self.orders(&client).await?;
                self.papers(&client).await?;
            }
            client.close().await;
        }
        if self.keys.roles.contains(&Role::Courier) {
            self.say(DROP_ACCOUNT);
            self.drop_box().await?;
        }
        // Last: a failed login may keep this address out for a while.
        self.say("logins");
        self.logins().await
    }

    fn say(&self, what: &str) {
        self.context.ui.progress(&format!("{}: {what}", self.name));
    }

    async fn ports(&mut self) -> Result<()> {
        let target = self.session.target(self.name, self.node, As::Courier)?;
        let ports: Vec<u16> = match self.args.all_ports {
            true => (1..=u16::MAX).collect(),
            false => (1..=1024).chain(WELL_KNOWN).collect(),
        };
        // SSH's own must answer, or what does not proves nothing.
        let ports: Vec<u16> = ports.into_iter().filter(|port| *port != target.port).chain([target.port]).collect();
        let attack = format!("to connect to {} TCP ports but SSH's", count(ports.len() as u64 - 1));
        let tried = target.try_ports(&ports).await.map_err(|error| Error::of(Kind::Unreachable, &error))?;
        let Some(mut tried) = tried else {
            self.leave("nothing", attack, "the node is reached over another host, which would answer for it");
            return Ok(());
        };
        let answers = tried.open.remove(&target.port);
        let outcome = if !tried.open.is_empty() {
            let open: Vec<String> = tried.open.iter().map(u16::to_string).collect();
            Outcome::Granted(format!("port {} answers", open.join(", ")))
        } else if !answers || tried.failed > 0 {
            Outcome::Unclear(format!("this machine could not try {} of them, or SSH's did not answer", tried.failed))
        } else {
            Outcome::Refused { by: Guard::Filter, said: "none of them answers".to_owned() }
        };
        self.note("nothing", attack, outcome);
        Ok(())
    }

    async fn logins(&mut self) -> Result<()> {
        let target = self.session.target(self.name, self.node, As::Courier)?;
        let unreachable = |error| Error::of(Kind::Unreachable, &error);
        let other = stranger().public_key().to_openssh();
        if let Ok(key) = other.parse() {
            let double = target.clone().showing(key);
            let outcome = match greet(&double, &self.session.identities, self.session.timeouts).await {
                Ok(()) => Outcome::Granted("a connection to a host that shows another key than is known".into()),
                Err(ConnectError::HostKeyOther { .. }) => {
                    Outcome::Refused { by: Guard::Client, said: "it shows another key".into() }
                }
                Err(error) => Outcome::Unclear(printable(&error.to_string())),
            };
            self.note("nothing", "to stand in for the node with another host key", outcome);
        }
        let knocked = knock(&target.as_user("root"), &self.session.identities, self.session.timeouts)
            .await
            .map_err(unreachable)?;
        let beside: Vec<&String> = knocked.methods.iter().filter(|method| *method != "publickey").collect();
        let outcome = match beside.as_slice() {
            [] => Outcome::Refused { by: Guard::Sshd, said: "public keys only".into() },
            some => Outcome::Granted(format!("it takes {some:?} too")),
        };
        self.note("nothing", "to log in by password or without a key", outcome);
        match knocked.tried {
            None => self.leave("nothing", "to log in as root", "no key at hand that needs nobody's touch"),
            Some((key, None)) => {
                let said = format!("with {}: it never became clear", printable(&key));
                self.note("nothing", "to log in as root", Outcome::Unclear(said));
            }
            Some((key, Some(true))) => {
                self.note("nothing", "to log in as root", Outcome::Granted(format!("with {}", printable(&key))));
            }
            Some((key, Some(false))) => {
                let said = format!("with {}", printable(&key));
                self.note("nothing", "to log in as root", Outcome::Refused { by: Guard::Sshd, said });
            }
        }
        Ok(())
    }

    /// As this account; a connection that an attempt ended is made anew.
    async fn connect(&self, account: &str) -> Result<NodeClient> {
        let target = self.session.target(self.name, self.node, As::Courier)?.as_user(account);
        let connected = NodeClient::connect(&target, &self.session.identities, self.session.timeouts).await;
        connected.map_err(|error| node_error(&error))
    }

    /// What sshd and the gate must refuse.
    async fn attempts(
        &mut self,
        account: &str,
        client: &mut NodeClient,
        attempts: impl IntoIterator<Item = (&str, Attempt)>,
    ) -> Result<()> {
        for (attack, attempt) in attempts {
            if client.connection().is_closed() {
                *client = self.connect(account).await?;
            }
            let outcome = client.connection().attempt(attempt).await;
            self.note(account, attack, outcome);
        }
        if client.connection().is_closed() {
            *client = self.connect(account).await?;
        }
        Ok(())
    }

    async fn drop_box(&mut self) -> Result<()> {
        let mut client = self.connect(DROP_ACCOUNT).await?;
        self.attempts(DROP_ACCOUNT, &mut client, OF_ANY_ACCOUNT).await?;
        let files = OF_THE_BOX.map(|(attack, request)| (attack, Attempt::File(request)));
        self.attempts(DROP_ACCOUNT, &mut client, files).await?;
        client.close().await;
        Ok(())
    }

    /// What the role may not ask.
    async fn requests(&mut self, who: As, client: &NodeClient) {
        let account = who.account();
        let (app, service) = (no_app(), "web".parse().expect("a name"));
        let look = |view| Ask::Look { app: app.clone(), service, view };
        let files = look(View::Files { path: "/".into() });
        let logs = Ask::Logs { app: app.clone(), service: None, lines: 1, follow: false };
        let objects = Ask::ImageDocument { image: ImageId([0; 32]) };
        let asks = match who {
            As::Courier => vec![("to read logs", logs), ("to see files of a service", files)],
            As::Observer => vec![("to fetch an image", objects), ("to see files of a service", files)],
            As::Operator => vec![("to fetch an image", objects)],
        };
        for (attack, ask) in asks {
            let answer = match client.request(ask).await {
                Ok(conversation) => conversation.finish(PATIENCE).await,
                Err(error) => Err(error),
            };
            self.judge(account, attack, answer, &["role"]);
        }
        if who != As::Courier {
            let answer = client.submit(Submit::default(), b"{}").await;
            self.judge(account, "to bring an order", answer, &["role"]);
            let paper = SignedText { text: "{}".into(), signatures: vec![] };
            let answer = client.bring(Paper::Policy, &paper).await;
            self.judge(account, "to bring a policy", answer, &["role"]);
            let answer = client.discharge(&paper).await;
            self.judge(account, "to give the node back", answer, &["role"]);
        }
        if who == As::Operator {
            return;
        }
        let attack = "to connect to a service";
        match client.status().await.ok().as_ref().and_then(running) {
            None => self.leave(account, attack, "no service runs there"),
            Some((app, service)) => {
                let answer = client.open(app, service).await.map(drop);
                self.judge(account, attack, answer, &["not-running"]);
            }
        }
    }

    /// By the rule that must refuse; the first of `rules` is the usual one.
    fn judge<T>(
        &mut self,
        account: &str,
        attack: &str,
        answer: std::result::Result<T, NodeError>,
        rules: &[impl AsRef<str>],
    ) {
        match answer {
            Ok(_) => self.note(account, attack, Outcome::Granted("the node did it".into())),
            Err(NodeError::Failed { failure, .. }) => {
                let is_expected = rules.iter().any(|rule| rule.as_ref() == failure.rule);
                let said = printable(&failure.message);
                let by = if failure.kind == FailureKind::Request { Guard::Gate } else { Guard::Keeper };
                let outcome = match is_expected {
                    true => Outcome::Refused { by, said },
                    false => Outcome::Unclear(format!("refused by the rule {}: {said}", printable(&failure.rule))),
                };
                self.note_with_rule(account, attack, outcome, Some(printable(&failure.rule)));
            }
            Err(error) => self.note(account, attack, Outcome::Unclear(error_text(&error))),
        }
    }

    async fn orders(&mut self, client: &NodeClient) -> Result<()> {
        let status = client.status().await.map_err(|error| node_error(&error))?;
        let forge = Forge { session: self.session, node: self.name, status: &status };
        let stranger = stranger();
        let stop = forge.order(|_| {});
        let bytes = stop.to_bytes();
        let submit = |signatures| Submit { signatures, ..Submit::default() };

        let answer = client.submit(submit(vec![]), &bytes).await;
        self.judge(ACCOUNT, "an order that nobody signed", answer, &["threshold"]);
        let answer = client.submit(submit(vec![stranger.sign(NAMESPACE, &bytes)]), &bytes).await;
        self.judge(ACCOUNT, "an order that a stranger signed", answer, &["threshold"]);
        let answer = client.submit(submit(vec!["garbage".into()]), &bytes).await;
        self.judge(ACCOUNT, "an order with garbage for a signature", answer, &["threshold"]);

        for forged in forge.signed_well_otherwise_wrong() {
            match &self.keys.release {
                Ok(key) => {
                    let signature = sign(key, forged.namespace, &forged.signed).await?;
                    let signatures = vec![signature; forged.times];
                    let answer = client.submit(submit(signatures), &forged.sent).await;
                    self.judge(ACCOUNT, forged.attack, answer, &[forged.rule]);
                }
                Err(why) => {
                    let why = why.clone();
                    self.leave(ACCOUNT, forged.attack, why);
                }
            }
        }
        let attack = "an order that a green key signed alone";
        match &self.keys.green {
            Err(why) => {
                let why = why.clone();
                self.leave(ACCOUNT, attack, why);
            }
            Ok(_) if self.keys.green_is_release => self.leave(ACCOUNT, attack, "the key has both roles"),
            Ok(key) => {
                let signature = sign(key, NAMESPACE, &bytes).await?;
                let answer = client.submit(submit(vec![signature]), &bytes).await;
                self.judge(ACCOUNT, attack, answer, &["threshold"]);
            }
        }
        Ok(())
    }

    async fn papers(&mut self, client: &NodeClient) -> Result<()> {
        let stranger = stranger();
        let policy = &self.session.policy.policy;
        let signed = |namespace: &str, bytes: Vec<u8>| {
            let signatures = vec![stranger.sign(namespace, &bytes)];
            SignedText { text: String::from_utf8_lossy(&bytes).into_owned(), signatures }
        };
        // Otherwise it is the present one, so that a node that took it would still be the team's.
        let next = Policy { version: policy.version + 1, ..policy.clone() };
        let answer = client.bring(Paper::Policy, &signed(POLICY_NAMESPACE, next.to_bytes())).await;
        self.judge(ACCOUNT, "a next policy that a stranger signed", answer, &["threshold"]);
        let revocation = Revocation {
            format: 1,
            fleet: policy.fleet.clone(),
            issued: now(),
            reason: "bulkhead attack".into(),
            revoked: Revoked { images: [ImageId([0; 32])].into(), ..Revoked::default() },
        };
        let answer = client.bring(Paper::Revocation, &signed(REVOCATION_NAMESPACE, revocation.to_bytes())).await;
        self.judge(ACCOUNT, "a revocation that a stranger signed", answer, &["threshold"]);
        let heartbeat = Heartbeat { format: 1, fleet: policy.fleet.clone(), issued: now(), policy: policy.version };
        let answer = client.bring(Paper::Heartbeat, &signed(HEARTBEAT_NAMESPACE, heartbeat.to_bytes())).await;
        self.judge(ACCOUNT, "a heartbeat that a stranger signed", answer, &["threshold"]);
        let statement = Statement {
            app: no_app(),
            image: ImageId([0; 32]),
            predicate: Predicate {
                result: TestResult::Passed,
                fleet: policy.fleet.clone(),
                repository: "nowhere".into(),
                commit: "none".into(),
                builder: "bulkhead attack".into(),
                issued: now(),
            },
        };
        let answer = client.bring(Paper::Statement, &signed(GREEN_NAMESPACE, statement.to_bytes())).await;
        self.judge(ACCOUNT, "a green statement that a stranger signed", answer, &["threshold"]);
        // Unsigned: one that a node took would be the end of it as a node.
        let answer = client.discharge(&SignedText { text: "{}".into(), signatures: vec![] }).await;
        self.judge(ACCOUNT, "to give the node back, with a paper that nobody signed", answer, &["threshold"]);
        let attack = "a green statement that a release key signed";
        match &self.keys.release {
            Ok(_) if self.keys.release_is_green => self.leave(ACCOUNT, attack, "the key has both roles"),
            Ok(key) => {
                let bytes = statement.to_bytes();
                let signatures = vec![sign(key, GREEN_NAMESPACE, &bytes).await?];
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let answer = client.bring(Paper::Statement, &SignedText { text, signatures }).await;
                self.judge(ACCOUNT, attack, answer, &["threshold"]);
            }
            Err(why) => {
                let why = why.clone();
                self.leave(ACCOUNT, attack, why);
            }
        }
        Ok(())
    }
}

async fn sign(key: &Signer, namespace: &'static str, bytes: &[u8]) -> Result<String> {
    key.sign(namespace, bytes).await.map_err(|error| sign_error(&error))
}

fn error_text(error: &NodeError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        put!(text, ": {error}");
        source = error.source();
    }
    printable(&text)
}

pub(super) fn no_app() -> AppName {
    NO_APP.parse().expect("a name")
}

/// A service that runs, of any app.
fn running(status: &NodeStatus) -> Option<(AppName, ServiceName)> {
    status.apps.iter().find_map(|app| {
        let service = app.services.iter().find(|service| service.state == "active" && service.port.is_some())?;
        Some((app.app.clone(), service.service.clone()))
    })
}

/// What nobody is let do on any account.
const OF_ANY_ACCOUNT: [(&str, Attempt); 13] = [
    ("a shell", Attempt::Shell),
    ("a terminal", Attempt::Terminal),
    ("a command", Attempt::Command("id")),
    ("an environment variable", Attempt::Variable),
    ("the operator's ssh-agent", Attempt::Agent),
    ("the operator's display", Attempt::Display),
    ("to connect onwards to the node itself", Attempt::Onward("127.0.0.1", 22)),
    ("to connect onwards to the provider's metadata", Attempt::Onward(METADATA, 80)),
    ("to connect to the keeper's socket", Attempt::Socket("/run/bulkhead/keeper.sock")),
    ("to connect to the observers' socket", Attempt::Socket("/run/bulkhead/keeper-observe.sock")),
    ("to connect to the operators' socket", Attempt::Socket("/run/bulkhead/keeper-operate.sock")),
    ("to listen on a port of the node", Attempt::Listen),
    ("to listen on a socket of the node", Attempt::ListenSocket("/tmp/bulkhead-attack")),
];

/// What the gate must not take.
const OF_THE_GATE: [(&str, Attempt); 6] = [
    ("a file transfer", Attempt::Subsystem("sftp")),
    ("a command behind the gate's own", Attempt::Command("bulkhead-gate; id")),
    ("garbage", Attempt::Bytes(b"GET / HTTP/1.1\r\n\r\n")),
    ("a frame of four gigabytes", Attempt::Bytes(b"\xff\xff\xff\xff\x01{")),
    ("an unknown protocol", Attempt::Bytes(b"\x24\0\0\0\x01{\"protocol\":4294967295,\"ask\":\"ping\"}")),
    ("an unknown question", Attempt::Bytes(b"\x1c\0\0\0\x01{\"protocol\":1,\"ask\":\"shell\"}")),
];

/// What nobody is let do in the drop box.
const OF_THE_BOX: [(&str, FileRequest); 7] = [
    ("to list the drop box", FileRequest::List),
    ("to read from it", FileRequest::Read),
    ("to remove a file there", FileRequest::Remove),
    ("to rename one", FileRequest::Rename),
    ("to make a link", FileRequest::Link),
    ("to follow one", FileRequest::ReadLink),
    ("to make a folder", FileRequest::MakeFolder),
];
