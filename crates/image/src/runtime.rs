//! What known programs load at run time without saying so in their ELF headers.
//!
//! The closure sees `DT_NEEDED` alone. What a program opens by name has to be
//! written down; for the most usual ones that is done here, so that a manifest
//! need not. Every path is taken if a package of the image has it, so one table
//! serves all suites.

/// A file that, once kept, brings others.
struct Known {
    /// Where the file is, as a pattern of [`crate::pattern`].
    file: &'static str,
    /// What it opens; `{dir}` is the directory of the file.
    opens: &'static [&'static str],
}

const KNOWN: &[Known] = &[
    // Debian builds Node.js with some of its JavaScript outside of the binary (configure
    // --shared-builtin-…-path) and reads it while starting.
    Known { file: "/usr/lib/*/libnode.so.*", opens: NODE_BUILTINS },
    Known { file: "/usr/bin/node", opens: NODE_BUILTINS },
    // pthread_cancel, pthread_exit and backtrace load it.
    Known { file: "/usr/lib/*/libc.so.6", opens: &["{dir}/libgcc_s.so.1"] },
    // Names in its configuration decide what else OpenSSL loads; without the file it uses its defaults.
    Known { file: "/usr/lib/*/libcrypto.so.*", opens: &["/usr/lib/ssl/openssl.cnf", "/etc/ssl/openssl.cnf"] },
];

const NODE_BUILTINS: &[&str] = &[
    "/usr/share/nodejs/acorn/dist/acorn.js",
    "/usr/share/nodejs/acorn-walk/dist/walk.js",
    "/usr/share/nodejs/cjs-module-lexer/lexer.js",
    "/usr/share/nodejs/cjs-module-lexer/dist/lexer.js",
    "/usr/share/nodejs/minimatch/dist/cjs/index.bundle.js",
    "/usr/share/nodejs/undici/undici-fetch.js",
    "/usr/share/nodejs/amaro/dist/index.js",
];

/// A package whose purpose is data: naming it in a manifest keeps the data.
const DATA_PACKAGES: &[(&str, &[&str])] = &[
    ("ca-certificates", &["/etc/ssl/certs/ca-certificates.crt", "/usr/lib/ssl/cert.pem"]),
    ("tzdata", &["/usr/share/zoneinfo"]),
    ("netbase", &["/etc/protocols", "/etc/services"]),
    ("media-types", &["/etc/mime.types"]),
];

/// What tools read besides, as patterns, where a package of the image has it: terminals that output to no
/// terminal is written for, and the library without which Debian's gdb does not start.
pub(crate) const TOOL_DATA: &[&str] =
    &["/usr/share/terminfo/d/dumb", "/usr/share/terminfo/v/vt100", "/usr/lib/python3.*", "/usr/share/gdb"];

/// An interpreter and the library that it is of no use without.
const LIBRARIES: &[(&str, &str)] = &[
    ("/usr/bin/python3.*", "/usr/lib/python3*"),
    ("/usr/bin/perl", "/usr/share/perl*"),
    ("/usr/bin/ruby*", "/usr/lib/ruby"),
];

/// Which package brings a program, for a message.
const PROGRAMS: &[(&str, &str)] = &[
    ("node", "nodejs"),
    ("nodejs", "nodejs"),
    ("python", "python3"),
    ("python3", "python3"),
    ("php", "php-cli"),
    ("ruby", "ruby"),
    ("perl", "perl"),
    ("java", "default-jre-headless"),
    ("nginx", "nginx"),
];

/// Patterns of files that lead to others, each with the paths that it opens.
pub(crate) fn known() -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
    KNOWN.iter().map(|known| (known.file, known.opens))
}

/// What naming a package in a manifest keeps.
pub(crate) fn data_of(package: &str) -> &'static [&'static str] {
    DATA_PACKAGES.iter().find(|(name, _)| *name == package).map_or(&[], |(_, paths)| paths)
}

/// Interpreters and their libraries, as patterns.
pub(crate) fn libraries() -> &'static [(&'static str, &'static str)] {
    LIBRARIES
}

/// The package that brings a program, if it is well known.
pub(crate) fn package_of(program: &str) -> Option<&'static str> {
    PROGRAMS.iter().find(|(name, _)| *name == program).map(|(_, package)| *package)
}
