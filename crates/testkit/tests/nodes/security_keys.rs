//! Security keys: a key posing as one, in the hands of whoever wants to do without the person.

use crate::{
    orders::Bench,
    trust::{fleet, is_on_record},
};
use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bulkhead_testkit::world::{PATIENCE, Ran, World};
use bulkhead_trust::sshsig::{PublicKey, armor, to_be_signed};
use bulkhead_wire::Event;
use ed25519_dalek::{Signer as _, SigningKey};
use sha2::{Digest as _, Sha256};
use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::Instant,
};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[("a_security_key_signs_only_with_its_person", touched)];

const KIND: &str = "sk-ssh-ed25519@openssh.com";
/// Flags of a signature: somebody touched the key, and was verified by it.
const TOUCHED: u8 = 1;
const VERIFIED: u8 = 4;

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).expect("short").to_be_bytes());
    out.extend_from_slice(bytes);
}

/// A security key in software, which sets the flags that it is told to.
struct SecurityKey {
    key: SigningKey,
    public: PublicKey,
    /// The file with its public half.
    file: PathBuf,
}

impl SecurityKey {
    fn new(world: &World, name: &str, seed: u8) -> Result<Self> {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let mut blob = Vec::new();
        for field in [KIND.as_bytes(), key.verifying_key().as_bytes(), b"ssh:"] {
            string(&mut blob, field);
        }
        let file = world.folder().join(format!("{name}.pub"));
        fs::write(&file, format!("{KIND} {} {name}\n", STANDARD.encode(&blob)))?;
        Ok(Self { key, public: PublicKey::from_blob(&blob)?, file })
    }

    /// Source: OpenSSH `PROTOCOL.u2f`.
    fn sign(&self, data: &[u8], flags: u8) -> Vec<u8> {
        let counter = 7_u32.to_be_bytes();
        let signed = [&Sha256::digest(b"ssh:")[..], &[flags], &counter, &Sha256::digest(data)].concat();
        let mut signature = Vec::new();
        string(&mut signature, KIND.as_bytes());
        string(&mut signature, &self.key.sign(&signed).to_bytes());
        signature.push(flags);
        signature.extend_from_slice(&counter);
        signature
    }

    fn sign_order(&self, bytes: &[u8], flags: u8) -> String {
        armor(&self.public, "order@bulkhead", &self.sign(&to_be_signed("order@bulkhead", bytes), flags))
    }
}

/// An ssh-agent that holds it (draft-miller-ssh-agent). Logins are touched; documents have the flags of the moment.
struct Agent {
    socket: PathBuf,
    flags: Arc<AtomicU8>,
}

impl Agent {
    fn start(world: &World, key: SecurityKey) -> Result<Self> {
        let socket = world.folder().join(format!("{}.agent", key.file.file_stem().context("a name")?.display()));
        let flags = Arc::new(AtomicU8::new(TOUCHED));
        let (listener, of_documents) = (UnixListener::bind(&socket)?, Arc::clone(&flags));
        let key = Arc::new(key);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (key, flags) = (Arc::clone(&key), Arc::clone(&of_documents));
                thread::spawn(move || answer(stream, &key, &flags).ok());
            }
        });
        Ok(Self { socket, flags })
    }

    fn run(&self, world: &World, folder: &Path, words: &[&str], key: &Path) -> Result<Ran> {
        world.run_with_env(folder, words, &[("SSH_AUTH_SOCK", &self.socket), ("BULKHEAD_KEY", key)])
    }
}

fn answer(mut stream: UnixStream, key: &SecurityKey, flags: &AtomicU8) -> Result<()> {
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut request = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut request)?;
        let mut reply = Vec::new();
        match request.first() {
            Some(11) => {
                reply.extend_from_slice(&[12, 0, 0, 0, 1]);
                string(&mut reply, key.public.blob());
                string(&mut reply, b"in software");
            }
            Some(13) => {
                // The key, and what to sign.
                let (_, rest) = take(&request[1..])?;
                let (data, _) = take(rest)?;
                let is_document = data.starts_with(b"SSHSIG");
                let flags = if is_document { flags.load(Ordering::Relaxed) } else { TOUCHED };
                reply.push(14);
                string(&mut reply, &key.sign(data, flags));
            }
            _ => reply.push(5),
        }
        let mut framed = Vec::new();
        string(&mut framed, &reply);
        stream.write_all(&framed)?;
    }
}

fn take(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>().context("too short")?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize).context("too short")
}

fn touched(world: &World) -> Result<()> {
    let dora = SecurityKey::new(world, "dora", 21)?;
    let vera = SecurityKey::new(world, "vera", 22)?;
    let (of_dora, of_vera) = (dora.file.clone(), vera.file.clone());
    fleet(world, &["key", "add", "dora", &of_dora.display().to_string(), "--yes"])?.expect(0)?;
    let verified = ["key", "add", "vera", &of_vera.display().to_string(), "--verify-user", "--yes"];
    fleet(world, &verified)?.expect(0)?;

    // At the wire, as whoever has the key in their hands and not its person.
    let bench = Bench::new(world, "touched")?;
    let bytes = bench.bytes()?;
    for flags in [0, VERIFIED] {
        bench.refused(&bytes, vec![dora.sign_order(&bytes, flags)], "threshold")?;
    }
    is_on_record(world, "stage-1", &["refused", "without touching the security key"])?;
    // The same refusal of one courier counts once a second, so the first of these may be left out.
    let end = Instant::now() + PATIENCE;
    loop {
        bench.refused(&bytes, vec![vera.sign_order(&bytes, TOUCHED)], "threshold")?;
        match is_on_record(world, "stage-1", &["refused", "asked no PIN or finger"]) {
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => {}
            Ok(()) => break,
        }
    }
    // Flags that the key did not sign.
    let lie = {
        let mut signature = dora.sign(&to_be_signed("order@bulkhead", &bytes), 0);
        let at = signature.len() - 5;
        signature[at] = TOUCHED;
        armor(&dora.public, "order@bulkhead", &signature)
    };
    bench.refused(&bytes, vec![lie], "threshold")?;
    let event = bench.submit(&bytes, vec![dora.sign_order(&bytes, TOUCHED)])?;
    ensure!(matches!(event, Event::Done(_)), "{event:?}");

    // As its person, with an agent: it logs in, and signs what `bulkhead` makes.
    let app = world.app("by-hand", &["serve", "3000"], "port = 3000\nstop = \"1s\"")?;
    let deploy = ["deploy", "-e", "staging", "--yes"];
    let (dora, vera) = (Agent::start(world, dora)?, Agent::start(world, vera)?);
    let mut version = 0;
    for (agent, key, flags, is_good) in [
        (&dora, &of_dora, TOUCHED, true),
        (&dora, &of_dora, 0, false),
        (&vera, &of_vera, TOUCHED | VERIFIED, true),
        (&vera, &of_vera, TOUCHED, false),
    ] {
        agent.flags.store(flags, Ordering::Relaxed);
        app.write("version.txt", &(version + 1).to_string())?;
        let ran = agent.run(world, &app.folder, &deploy, key)?;
        ensure!((ran.code == 0) == is_good, "flags {flags}: {ran}");
        version += u32::from(is_good);
        app.serves("stage-1", &version.to_string())?;
    }
    fleet(world, &["audit", "-e", "staging"])?.expect(0)?.says("dora")?.says("vera").map(drop)
}
