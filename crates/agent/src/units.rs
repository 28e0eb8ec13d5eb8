//! From a service's specification to the text of its systemd units. Pure.
//!
//! Units are a function of a signed order and are named by release, so that
//! they are written once, never changed, and need no `daemon-reload`:
//!
//! ```text
//! bulkhead-APP.SERVICE.rN.service         the service, sealed
//! bulkhead-APP.SERVICE.rN.socket          its inbound Unix socket
//! bulkhead-APP.SERVICE.rN-proxy.service   systemd-socket-proxyd, in the service's network namespace
//! ```
//!
//! Names hold no dot, so no two services share a unit's name.
//!
//! The proxy starts only once the service listens, and until then connections
//! wait in the socket: so a service that must stop before its successor starts,
//! or is restarted, makes its clients wait instead of turning them away. What waits becomes the proxy, in one
//! process: a second one would have its namespaces and filters made while clients wait already.
//!
//! The proxy does not *require* the service: a connection that waits in the
//! socket would then start the service again at once whenever it failed, and
//! make nothing of its back-off.

use bulkhead_core::{
    AppName, ImageId, ServiceName,
    order::{Rights, ServiceSpec, Tool},
};
use std::fmt::Write as _;
use std::path::Path;

/// Processes and threads of a service that does not say: far above what a service needs, far below what hurts a node.
pub const TASKS_MAX_DEFAULT: u32 = 512;
/// From which version systemd can give a service a process-id namespace of its own.
pub const SYSTEMD_PRIVATE_PIDS: u32 = 257;
/// From which version it can wait longer after each failed start.
const SYSTEMD_RESTART_STEPS: u32 = 254;
/// An idle proxy ends; the next connection starts it again.
const PROXY_IDLE_S: u32 = 300;
/// Connections to one service at once; more wait in the socket.
const CONNECTIONS_MAX: u32 = 4096;

/// Log lines of a service in half a minute. journald takes up to six times as
/// many where the disk has room, and `LineMax=` bounds each.
const LOG_BURST: u32 = 2000;
/// From which version systemd can show a service its own control group only.
const SYSTEMD_STRICT_CONTROL_GROUPS: u32 = 257;

/// The names of a service's units in one release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The service.
    pub service: String,
    /// Its socket.
    pub socket: String,
    /// Its proxy.
    pub proxy: String,
}

impl Names {
    /// Of a service in a release.
    #[must_use]
    pub fn new(app: &AppName, service: &ServiceName, release: u64) -> Self {
        let stem = format!("bulkhead-{app}.{service}.r{release}");
        Self {
            service: format!("{stem}.service"),
            socket: format!("{stem}.socket"),
            proxy: format!("{stem}-proxy.service"),
        }
    }

    /// Of which app, service and release a unit is, by its name; `None` of one that is none of these.
    #[must_use]
    pub fn parse(unit: &str) -> Option<(AppName, ServiceName, u64)> {
        let mut parts = unit.strip_prefix("bulkhead-")?.splitn(3, '.');
        let (app, service) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let (number, _) = parts.next()?.strip_prefix('r')?.split_once(['.', '-'])?;
        let number = number.parse().ok()?;
        let names = Self::new(&app, &service, number);
        let is_one = [names.service, names.socket, names.proxy].iter().any(|name| name == unit);
        is_one.then_some((app, service, number))
    }
}

/// The unit that mounts an image.
#[must_use]
pub fn image_unit(image: ImageId) -> String {
    format!("bulkhead-image@{image}.service")
}

/// The system account of a user id of ours.
#[must_use]
pub fn account(uid: u32) -> String {
    format!("bulkhead-{uid}")
}

/// What a release is to its units.
#[derive(Debug, Clone, Copy)]
pub struct Release<'a> {
    /// The app.
    pub app: &'a AppName,
    /// The release's number.
    pub number: u64,
    /// The image that it runs.
    pub image: ImageId,
    /// The app's user id; the proxies have the next one, so that a service has no right over its proxy.
    pub uid: u32,
    /// systemd's version.
    pub systemd: u32,
    /// Where images are mounted, sockets lie and volumes are.
    pub paths: &'a crate::state::Paths,
}

/// Why a specification cannot be written as units.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitsError {
    /// systemd has no way to write this character.
    #[error("service `{service}`: {place} holds the character U+{character:04X}, which systemd refuses")]
    Character {
        /// Which service.
        service: ServiceName,
        /// Where.
        place: String,
        /// Which.
        character: u32,
    },
    /// The program's first character would be one of the prefixes that systemd takes for rights.
    #[error("service `{service}`: the program `{program}` begins with neither `/` nor a letter or digit")]
    Program {
        /// Which service.
        service: ServiceName,
        /// Which program.
        program: String,
    },
    /// A path with a space in it cannot be a volume's or working directory.
    #[error("service `{service}`: the path `{path}` has a space in it, which systemd cannot bind")]
    Space {
        /// Which service.
        service: ServiceName,
        /// Which path.
        path: String,
    },
}

/// A word of a unit file's value, quoted so that systemd reads exactly `text`.
/// `%` is systemd's specifier; `$` needs no escape where the command is marked with `:`.
///
/// Source: systemd.syntax(7), systemd.service(5) "Command lines".
fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '%' => out.push_str("%%"),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// systemd ignores a line with a character that Unicode calls a noncharacter: then the service would run without it.
fn refused(text: &str) -> Option<u32> {
    text.chars().map(u32::from).find(|code| code & 0xfffe == 0xfffe || (0xfdd0..=0xfdef).contains(code) || *code < 0x20)
}

fn check(service: &ServiceSpec) -> Result<(), UnitsError> {
    // An order is refused for this already. It is the one word that is not
    // quoted, and quotes would not help: systemd looks for prefixes inside them.
    let program = service.command.first().map_or("", String::as_str);
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "/._+-".contains(character);
    if !program.starts_with(|first: char| first == '/' || first.is_ascii_alphanumeric())
        || !program.chars().all(is_plain)
    {
        return Err(UnitsError::Program { service: service.name.clone(), program: program.to_owned() });
    }
    let words = service.command.iter().map(|word| ("the command", word));
    let values = service.env.values().map(|value| ("the environment", value));
    let paths = service.volumes.iter().map(|volume| ("a volume's path", &volume.path));
    for (place, text) in words.chain(values).chain(paths).chain([("the working directory", &service.workdir)]) {
        if let Some(character) = refused(text) {
            return Err(UnitsError::Character { service: service.name.clone(), place: place.into(), character });
        }
    }
    let paths = service.volumes.iter().map(|volume| &volume.path).chain([&service.workdir]);
    for path in paths {
        if path.chars().any(char::is_whitespace) {
            return Err(UnitsError::Space { service: service.name.clone(), path: path.clone() });
        }
    }
    Ok(())
}

/// The units of one service: file name and text of each.
///
/// # Errors
/// What of the specification has no place in a unit.
pub fn write(release: &Release<'_>, service: &ServiceSpec) -> Result<Vec<(String, String)>, UnitsError> {
    check(service)?;
    let names = Names::new(release.app, &service.name, release.number);
    let mut units = vec![(names.service.clone(), service_unit(release, service))];
    if let Some(port) = service.port {
        units.push((names.socket.clone(), socket_unit(release, service, &names)));
        units.push((names.proxy.clone(), proxy_unit(release, service, &names, port)));
    }
    Ok(units)
}

fn service_unit(release: &Release<'_>, service: &ServiceSpec) -> String {
    let Release { app, number, image, uid, systemd, paths } = *release;
    let image_unit = image_unit(image);
    let mut text = format!(
        "# Written by Bulkhead from a signed order; do not edit.\n\
         [Unit]\n\
         Description={app}/{} release {number}\n\
         Requires={image_unit}\n\
         After={image_unit}\n\
         StartLimitIntervalSec=0\n\
         CollectMode=inactive-or-failed\n\
         {}\n\
         [Service]\n\
         Type=exec\n\
         Slice=bulkhead.slice\n",
        service.name,
        mounts_of(release, service)
    );
    let mut line = |key: &str, value: &str| {
        // Writing to a String cannot fail.
        writeln!(text, "{key}={value}").expect("a String takes all");
    };
    let command: Vec<String> = service.command[1..].iter().map(|word| quote(word)).collect();
    // `:` keeps systemd from looking for variables in the words.
    line("ExecStart", format!(":{} {}", service.command[0], command.join(" ")).trim_end());
    line("ExecSearchPath", "/usr/bin:/usr/local/bin:/bin");
    line("WorkingDirectory", &service.workdir);
    for (key, value) in &service.env {
        line("Environment", &quote(&format!("{key}={value}")));
    }
    for name in &service.secrets {
        line("LoadCredentialEncrypted", &format!("{name}:{}", display(&paths.credential(app, number, name))));
    }
    line("RootDirectory", &display(&paths.image(image)));
    // `+`: below `RootDirectory=`; without it systemd takes the node's paths and drops them in silence.
    let mut no_exec = String::from("-+/tmp -+/var/tmp -+/dev/shm");
    for volume in &service.volumes {
        line("BindPaths", &format!("{}:{}", display(&paths.volumes(app).join(volume.name.as_str())), volume.path));
        write!(no_exec, " +{}", volume.path).expect("a String takes all");
    }
    line("NoExecPaths", &no_exec);
    line("User", &account(uid));
    line("Group", &account(uid));
    for fixed in SEAL.iter().chain(control_groups(systemd)) {
        line(fixed.0, fixed.1);
    }
    if systemd >= SYSTEMD_PRIVATE_PIDS {
        line("PrivatePIDs", "yes");
        // Through the journal's own sockets it could write lines in another app's name.
        line("BindLogSockets", "no");
    }
    line("MemoryDenyWriteExecute", if service.jit { "no" } else { "yes" });
    line("RestrictAddressFamilies", if service.port.is_some() { "AF_UNIX AF_INET AF_INET6" } else { "AF_UNIX" });
    if let Some(bytes) = service.memory_max_bytes {
        line("MemoryMax", &bytes.to_string());
        // What is over the limit must not crowd the node's swap instead.
        line("MemorySwapMax", "0");
    }
    line("TasksMax", &service.tasks_max.unwrap_or(TASKS_MAX_DEFAULT).to_string());
    if let Some(percent) = service.cpu_percent {
        line("CPUQuota", &format!("{percent}%"));
    }
    // Zero would mean without end.
    line("TimeoutStopSec", &format!("{}ms", service.stop_ms.max(1)));
    line("Restart", "always");
    line("RestartSec", "1s");
    if systemd >= SYSTEMD_RESTART_STEPS {
        line("RestartSteps", "5");
        line("RestartMaxDelaySec", "30s");
    }
    // One that floods its log loses lines of its own before it pushes out those of others.
    line("LogRateLimitIntervalSec", "30s");
    line("LogRateLimitBurst", &LOG_BURST.to_string());
    line("SyslogIdentifier", &format!("{app}/{}", service.name));
    line("LogExtraFields", &format!("BULKHEAD_APP={app}"));
    line("LogExtraFields", &format!("BULKHEAD_SERVICE={}", service.name));
    line("LogExtraFields", &format!("BULKHEAD_RELEASE={number}"));
    text
}

/// A volume may be on a disk of its own, which is mounted late, or not at all:
/// then the service must wait, and not write to the empty directory below it.
fn mounts_of(release: &Release<'_>, service: &ServiceSpec) -> String {
    let directory = release.paths.volumes(release.app);
    service
        .volumes
        .iter()
        .map(|volume| format!("RequiresMountsFor={}\n", display(&directory.join(volume.name.as_str()))))
        .collect()
}

/// What holds for every service, whatever its order says.
const SEAL: &[(&str, &str)] = &[
    ("MountAPIVFS", "yes"),
    ("UMask", "0077"),
    ("PrivateUsers", "yes"),
    ("PrivateNetwork", "yes"),
    ("PrivateIPC", "yes"),
    ("PrivateTmp", "yes"),
    ("PrivateDevices", "yes"),
    ("PrivateMounts", "yes"),
    ("NoNewPrivileges", "yes"),
    ("CapabilityBoundingSet", ""),
    ("AmbientCapabilities", ""),
    ("DevicePolicy", "closed"),
    ("ProtectSystem", "strict"),
    ("ProtectHome", "yes"),
    ("ProtectProc", "invisible"),
    ("ProcSubset", "pid"),
    ("ProtectClock", "yes"),
    ("ProtectHostname", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("LockPersonality", "yes"),
    ("RemoveIPC", "yes"),
    ("KeyringMode", "private"),
    ("SystemCallArchitectures", "native"),
    ("SystemCallFilter", "@system-service"),
    (
        "SystemCallFilter",
        "~@privileged @resources @mount @keyring @obsolete @debug io_uring_setup io_uring_enter io_uring_register \
         userfaultfd process_vm_readv process_vm_writev kcmp",
    ),
    ("SystemCallErrorNumber", "EPERM"),
    ("IPAddressDeny", "any"),
    ("IPAddressAllow", "localhost"),
    ("Delegate", "no"),
    ("NotifyAccess", "none"),
];

/// The tree of control groups names every app and service of the node. A
/// service sees its own alone where that can be, which runtimes size themselves by; else none.
fn control_groups(systemd: u32) -> &'static [(&'static str, &'static str)] {
    if systemd >= SYSTEMD_STRICT_CONTROL_GROUPS {
        &[("ProtectControlGroups", "strict")]
    } else {
        &[("ProtectControlGroups", "yes"), ("InaccessiblePaths", "-+/sys/fs/cgroup")]
    }
}

fn socket_unit(release: &Release<'_>, service: &ServiceSpec, names: &Names) -> String {
    let socket = release.paths.socket_directory(release.app, release.number, &service.name).join("sock");
    format!(
        "# Written by Bulkhead from a signed order; do not edit.\n\
         [Unit]\n\
         Description={}/{} release {}, inbound\n\
         CollectMode=inactive-or-failed\n\
         \n\
         [Socket]\n\
         ListenStream={}\n\
         SocketUser=root\n\
         SocketGroup=bulkhead-operate\n\
         SocketMode=0660\n\
         DirectoryMode=0755\n\
         Backlog={CONNECTIONS_MAX}\n\
         RemoveOnStop=yes\n\
         Service={}\n\
         TriggerLimitIntervalSec=0\n",
        release.app,
        service.name,
        release.number,
        display(&socket),
        names.proxy
    )
}

fn proxy_unit(release: &Release<'_>, service: &ServiceSpec, names: &Names, port: u16) -> String {
    let account = account(release.uid + 1);
    let mut text = format!(
        "# Written by Bulkhead from a signed order; do not edit.\n\
         [Unit]\n\
         Description={}/{} release {}, proxy\n\
         JoinsNamespaceOf={}\n\
         StartLimitIntervalSec=0\n\
         CollectMode=inactive-or-failed\n\
         \n\
         [Service]\n\
         Type=notify\n\
         Slice=bulkhead.slice\n\
         TimeoutStartSec=infinity\n\
         ExecStart=/usr/lib/bulkhead/bulkhead-agent await-port {port} \
         /usr/lib/systemd/systemd-socket-proxyd --connections-max={CONNECTIONS_MAX} \
         --exit-idle-time={PROXY_IDLE_S} 127.0.0.1:{port}\n\
         User={account}\n\
         Group={account}\n\
         MemoryDenyWriteExecute=yes\n\
         MemoryMax=128M\n\
         TasksMax=64\n\
         CPUQuota=100%\n\
         RestrictAddressFamilies=AF_UNIX AF_INET\n\
         SyslogIdentifier={}/{}-proxy\n",
        release.app, service.name, release.number, names.service, release.app, service.name
    );
    // `JoinsNamespaceOf=` would share these two with the service as well.
    let shared = ["PrivateTmp", "PrivateIPC", "NotifyAccess", "MountAPIVFS"];
    for (key, value) in SEAL.iter().filter(|(key, _)| !shared.contains(key)).chain(control_groups(release.systemd)) {
        writeln!(text, "{key}={value}").expect("a String takes all");
    }
    text
}

/// The program that makes the accounts of an app's two user ids, as a unit of
/// its own: the keeper itself may not write to `/etc`.
#[must_use]
pub fn accounts_unit(app: &AppName, uid: u32) -> (String, String) {
    let (own, proxy) = (account(uid), account(uid + 1));
    let text = format!(
        "# Written by Bulkhead; do not edit.\n\
         [Unit]\n\
         Description=accounts of app {app}\n\
         CollectMode=inactive-or-failed\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         ExecStart=systemd-sysusers --inline \"u {own} {uid} \\\"Bulkhead app {app}\\\"\" \
         \"u {proxy} {} \\\"Bulkhead proxy of {app}\\\"\"\n\
         PrivateNetwork=yes\n",
        uid + 1
    );
    (format!("bulkhead-accounts-{uid}.service"), text)
}

/// The slice that tools are in, below that of the services.
pub const TOOL_SLICE: &str = "bulkhead-tools.slice";
/// What all tools of a node may have together.
const TOOLS_MEMORY: &str = "1G";
/// What one tool may have: a debugger reads the symbols of large programs.
const TOOL_MEMORY: &str = "512M";
/// How much later than the keeper systemd ends a tool, where the keeper did not.
const TOOL_LATER_MS: u64 = 5000;
/// What [`crate::tool`] needs to enter; the tool itself has one or two of them, see there.
const TOOL_CAPABILITIES: &str = "CAP_SYS_ADMIN CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH \
                                 CAP_SETUID CAP_SETGID CAP_SETPCAP CAP_NET_RAW";

/// The slice's name and text.
#[must_use]
pub fn tool_slice() -> (&'static str, String) {
    let text = format!(
        "# Written by Bulkhead; do not edit.\n\
         [Unit]\n\
         Description=Tools that look into services\n\
         \n\
         [Slice]\n\
         MemoryMax={TOOLS_MEMORY}\n\
         MemorySwapMax=0\n\
         TasksMax=256\n\
         CPUWeight=50\n"
    );
    (TOOL_SLICE, text)
}

/// The name of a tool's unit.
#[must_use]
pub fn tool_unit_name(id: &str) -> String {
    format!("bulkhead-tool-{id}.service")
}

/// The unit of a tool: name and text. `id` is its order's, in hexadecimal. It carries no word of the command.
#[must_use]
pub fn tool_unit(app: &AppName, tool: &Tool, id: &str) -> (String, String) {
    let image_unit = image_unit(tool.image);
    let mut text = format!(
        "# Written by Bulkhead from a signed order; do not edit.\n\
         [Unit]\n\
         Description={app}/{}, looked into by order {id}\n\
         Requires={image_unit}\n\
         After={image_unit}\n\
         CollectMode=inactive-or-failed\n\
         \n\
         [Service]\n\
         Type=exec\n\
         Slice={TOOL_SLICE}\n\
         ExecStart=/usr/lib/bulkhead/bulkhead-agent tool {id}\n\
         RuntimeMaxSec={}ms\n\
         CapabilityBoundingSet={TOOL_CAPABILITIES}\n\
         RestrictNamespaces={}\n\
         MemoryMax={TOOL_MEMORY}\n",
        tool.service,
        u64::from(tool.within_ms) + TOOL_LATER_MS,
        // Those that the agent enters.
        match tool.rights {
            Rights::Trace => "user net ipc uts mnt",
            Rights::Capture => "net",
        }
    );
    for (key, value) in TOOL_SEAL {
        writeln!(text, "{key}={value}").expect("a String takes all");
    }
    (tool_unit_name(id), text)
}

/// What holds for every tool. What the agent does at first (namespaces, mounts) is not taken from it here; it
/// gives that up itself.
const TOOL_SEAL: &[(&str, &str)] = &[
    ("KillMode", "control-group"),
    ("TimeoutStopSec", "2s"),
    ("MemorySwapMax", "0"),
    ("TasksMax", "64"),
    ("CPUQuota", "100%"),
    ("OOMPolicy", "kill"),
    ("OOMScoreAdjust", "500"),
    ("LimitCORE", "0"),
    ("UMask", "0077"),
    ("StandardInput", "null"),
    ("StandardOutput", "null"),
    ("StandardError", "journal"),
    ("SyslogIdentifier", "bulkhead-tool"),
    ("PrivateMounts", "yes"),
    // Until it is in the service's network it has none.
    ("PrivateNetwork", "yes"),
    ("PrivateIPC", "yes"),
    ("NoNewPrivileges", "yes"),
    ("DevicePolicy", "closed"),
    ("KeyringMode", "private"),
    ("RestrictRealtime", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("LockPersonality", "yes"),
    ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET"),
    ("SystemCallArchitectures", "native"),
    ("SystemCallFilter", "@system-service @mount @debug @setuid setns pivot_root chroot capset seccomp"),
    (
        "SystemCallFilter",
        "~@keyring @clock @module @reboot @swap perf_event_open bpf io_uring_setup io_uring_enter io_uring_register",
    ),
    ("SystemCallErrorNumber", "EPERM"),
];

fn display(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Paths;
    use bulkhead_core::order::{Health, HealthCheck, VolumeMount};

    fn service() -> ServiceSpec {
        ServiceSpec {
            name: "web".parse().unwrap(),
            command: vec!["node".into(), "server.js".into()],
            workdir: "/app".into(),
            env: [("A".to_owned(), "b c".to_owned())].into(),
            port: Some(3000),
            health: Health { check: HealthCheck::Tcp, within_ms: 1000 },
            volumes: vec![VolumeMount { name: "data".parse().unwrap(), path: "/data".into() }],
            memory_max_bytes: Some(1 << 28),
            tasks_max: None,
            cpu_percent: Some(150),
            jit: true,
            drain_ms: 0,
            stop_ms: 5000,
            secrets: std::collections::BTreeSet::new(),
        }
    }

    fn render(service: &ServiceSpec, systemd: u32) -> Result<Vec<(String, String)>, UnitsError> {
        let release = Release {
            app: &"notes".parse().unwrap(),
            number: 7,
            image: ImageId([0xab; 32]),
            uid: 50_000,
            systemd,
            paths: &Paths::new(Path::new("/")),
        };
        write(&release, service)
    }

    #[test]
    fn whole_units() {
        let text: Vec<String> =
            render(&service(), 257).unwrap().into_iter().map(|(name, text)| format!("== {name}\n{text}")).collect();
        insta::assert_snapshot!(text.join("\n"));
    }

    #[test]
    fn what_older_versions_do_not_know_is_left_out() {
        let (_, old) = &render(&service(), 252).unwrap()[0];
        let (_, new) = &render(&service(), 257).unwrap()[0];
        for key in
            ["PrivatePIDs=", "RestartSteps=", "RestartMaxDelaySec=", "BindLogSockets=no", "ProtectControlGroups=strict"]
        {
            assert!(new.contains(key) && !old.contains(key), "{key}");
        }
        assert!(old.contains("\nInaccessiblePaths=-+/sys/fs/cgroup\n"), "{old}");
    }

    #[test]
    fn secrets_are_loaded_from_what_the_nodes_key_wrapped() {
        let secrets = ["TOKEN", "URL"].map(|name| name.parse().unwrap()).into();
        let units = render(&ServiceSpec { secrets, ..service() }, 257).unwrap();
        let text = &units[0].1;
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("Credential")).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].starts_with("LoadCredentialEncrypted=TOKEN:/"), "{lines:?}");
        assert!(lines[0].ends_with("/secrets/TOKEN.cred"), "{lines:?}");
    }

    #[test]
    fn no_stop_takes_for_ever() {
        let units = render(&ServiceSpec { stop_ms: 0, ..service() }, 257).unwrap();
        assert!(units[0].1.contains("\nTimeoutStopSec=1ms\n"));
    }

    #[test]
    fn a_service_without_a_port_has_no_way_in() {
        let units = render(&ServiceSpec { port: None, ..service() }, 257).unwrap();
        assert_eq!(units.len(), 1);
        assert!(units[0].1.contains("RestrictAddressFamilies=AF_UNIX\n"));
    }

    /// What systemd makes of a quoted word: systemd.syntax(7), less the escapes that are never written here.
    fn unquote(word: &str) -> String {
        let mut out = String::new();
        let mut characters = word.strip_prefix('"').unwrap().strip_suffix('"').unwrap().chars();
        while let Some(character) = characters.next() {
            match character {
                '\\' => out.push(characters.next().filter(|next| "\"\\".contains(*next)).unwrap()),
                '%' => assert_eq!((characters.next(), out.push('%')), (Some('%'), ())),
                '"' => panic!("the word ends early: {word}"),
                other => out.push(other),
            }
        }
        out
    }

    #[test]
    fn quoting() {
        for text in ["", " ", ";", "a b", "$HOME ${X}", "%h %%", "\\", "\\n", "\"", "'", "é☃", "a\\\"%b", "-", "@x"]
        {
            assert_eq!(unquote(&quote(text)), text);
        }
    }

    #[test]
    fn what_has_no_place_in_a_unit() {
        let check = |change: fn(&mut ServiceSpec), words: &str| {
            let mut service = service();
            change(&mut service);
            let error = render(&service, 257).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        check(|service| service.command.push("\u{fdd0}".into()), "the command holds the character U+FDD0");
        check(|service| drop(service.env.insert("A".into(), "\u{ffff}".into())), "the environment holds");
        check(|service| service.env.insert("A".into(), "a\nUser=root".into()).map_or((), drop), "U+000A");
        for prefix in ["+", "-", "!", "!!", "@", "|", ":", ".", "", "$", "%h/", "\""] {
            let mut service = service();
            service.command[0] = format!("{prefix}node").replace("node", if prefix.is_empty() { "" } else { "node" });
            let error = render(&service, 257).unwrap_err();
            assert!(matches!(error, UnitsError::Program { .. }), "{prefix}: {error}");
        }
        check(|service| service.command[0] = "node;".into(), "the program");
        check(|service| service.command.clear(), "the program");
        check(|service| service.workdir = "/a b".into(), "has a space");
        check(|service| service.volumes[0].path = "/a b".into(), "has a space");
    }

    #[test]
    fn a_whole_tool() {
        let tool = Tool {
            service: "web".parse().unwrap(),
            image: ImageId([0xab; 32]),
            command: vec!["sh".into(), "-c".into(), "%n \nUser=root".into()],
            rights: Rights::Trace,
            within_ms: 300_000,
        };
        let (name, text) = tool_unit(&"notes".parse().unwrap(), &tool, "0123456789abcdef");
        assert_eq!(name, "bulkhead-tool-0123456789abcdef.service");
        assert!(text.contains("\nRuntimeMaxSec=305000ms\n") && !text.contains("User="), "{text}");
        assert!(text.contains("\nRestrictNamespaces=user net ipc uts mnt\n"), "{text}");
        let (_, text) = tool_unit(&"notes".parse().unwrap(), &Tool { rights: Rights::Capture, ..tool }, "0");
        assert!(text.contains("\nRestrictNamespaces=net\n"), "{text}");
        assert!(tool_slice().1.contains("\nMemoryMax=1G\n"));
    }

    #[test]
    fn names_never_meet() {
        let name = |app: &str, service: &str| Names::new(&app.parse().unwrap(), &service.parse().unwrap(), 1).service;
        assert_ne!(name("a-b", "c"), name("a", "b-c"));
        assert_eq!(name("notes", "web"), "bulkhead-notes.web.r1.service");
    }

    #[test]
    fn names_and_back() {
        let (app, service) = ("a-b".parse().unwrap(), "c-proxy".parse().unwrap());
        let Names { service: unit, socket, proxy } = Names::new(&app, &service, 12);
        for name in [unit, socket, proxy] {
            assert_eq!(Names::parse(&name), Some((app.clone(), service.clone(), 12)), "{name}");
        }
        for name in [
            "bulkhead-a.b.r1.timer",
            "bulkhead-a.b.r01.service",
            "bulkhead-a.b.r+1.service",
            "bulkhead-a.b.service",
            "bulkhead-keeper@1.service",
            "bulkhead-a.b.r1-proxy.service.d",
            "a.b.r1.service",
        ] {
            assert_eq!(Names::parse(name), None, "{name}");
        }
    }
}
