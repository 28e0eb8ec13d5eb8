//! `bulkhead revoke`.

use crate::{
    Context,
    commands::policy::{bring_notice, one_of},
    error::{Error, Result},
    output::{Paint, printable},
    session::{Answer, As, Session, now, sign_error},
};
use bulkhead_core::{
    AppName, ImageId, NodeName, OrderId, StatementId,
    notice::{REVOCATION_NAMESPACE, Revocation, Revoked},
};
use bulkhead_wire::{Paper, Release};
use clap::Args;
use std::{
    collections::{BTreeMap, BTreeSet},
    str::FromStr,
};

/// The shortest beginning of an id that is looked for: fewer digits are more likely a slip.
const PREFIX_MIN: usize = 4;
/// So many digits can be no slip, and no node can have made up an image that begins with them: fewer are taken only from
/// a person who sees the whole id before agreeing, and while every node says what it knows.
const PREFIX_SURE: usize = 32;
/// How many ids an error names.
const SHOWN_MAX: usize = 5;

/// Keeps images, orders or statements from starting anything any more, on every node
///
/// Any one release key is enough; a green key may revoke images and statements. What
/// runs goes on running, and is shown first: stop it, or deploy another. What is revoked
/// stays so. Where some nodes take it and others do not, the exit code is 9, and the same
/// command again brings it to the others. What was signed is kept in `.bulkhead/notices`
/// beside `fleet.toml`, and machines that a loop buys are brought it.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Images to revoke: ids, or the beginning of one as `bulkhead ps` and `releases` show it. With `--yes`, or while a
    /// node does not answer, 32 digits or more.
    #[arg(long = "image", value_name = "IMAGE")]
    pub images: Vec<Beginning>,

    /// Orders, standing orders and grants for pools to revoke.
    #[arg(long = "order", value_name = "ORDER")]
    pub orders: Vec<OrderId>,

    /// Statements to revoke.
    #[arg(long = "statement", value_name = "STATEMENT")]
    pub statements: Vec<StatementId>,

    /// Why.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,

    /// Goes on without a question.
    #[arg(short, long)]
    pub yes: bool,
}

/// The first digits of an id, or all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beginning(String);

impl FromStr for Beginning {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if !(PREFIX_MIN..=64).contains(&text.len()) || !text.bytes().all(is_digit) {
            return Err(format!(
                "an id is 64 digits of 0-9 and a-f, of which the first {PREFIX_MIN} or more are enough"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// Where images are, as far as nodes answered.
#[derive(Debug, Default)]
struct Known {
    /// Which apps run one, on which nodes, as which release.
    live: BTreeMap<ImageId, BTreeMap<AppName, Vec<(NodeName, u64)>>>,
    /// All that nodes ever ran, and that this machine built or saw.
    images: BTreeSet<ImageId>,
    /// Nodes that did not answer.
    away: Vec<NodeName>,
}

/// Revokes.
///
/// # Errors
/// Nobody agreed, no key is at hand, an id is unclear, or a node did not take it.
pub async fn run(context: &Context, args: &RevokeArgs) -> Result<()> {
    context.ui.must_be_able_to_ask(args.yes)?;
    let session = Session::open(context)?;
    let hand = session.hand().await?;
    let signer = one_of(&hand)?;
    let known = if args.images.is_empty() { Known::default() } else { Known::ask(&session).await? };
    if let Some(Beginning(text)) = args.images.iter().find(|Beginning(text)| text.len() < PREFIX_SURE)
        && (args.yes || !known.away.is_empty())
    {
        let why = if args.yes { "with --yes nobody sees which image is meant" } else { "not every node answered" };
        return Err(Error::usage(format!("{text} is too short for an image to revoke: {why}"))
            .hint(format!("give {PREFIX_SURE} digits or more; `bulkhead releases -o json` has whole ids")));
    }
    let images = args.images.iter().map(|beginning| known.image(beginning)).collect::<Result<BTreeSet<_>>>()?;
    let revoked = Revoked {
        images: images.clone(),
        orders: args.orders.iter().copied().collect(),
        statements: args.statements.iter().copied().collect(),
    };
    let fleet = session.files.fleet.fleet.clone();
    let revocation = Revocation { format: 1, fleet, issued: now(), reason: args.reason.clone(), revoked };
    revocation.check().map_err(|what| Error::usage(format!("this would be refused: {what}")))?;
    context.ui.preview(|paint| preview(&revocation, &known, paint))?;
    for image in images.iter().filter(|image| !known.images.contains(image)) {
        context.ui.note(&format!(
            "warning: no node that answered ever ran image {}, and nothing here was built as it",
            image.short()
        ));
    }
    context.ui.confirm("Revoke?", args.yes).await?;
    let bytes = revocation.to_bytes();
    let signature = signer.sign(REVOCATION_NAMESPACE, &bytes).await.map_err(|error| sign_error(&error))?;
    bring_notice(context, &session, Paper::Revocation, bytes, vec![signature], "revoked").await
}

/// What is revoked, and what runs of it.
fn preview(revocation: &Revocation, known: &Known, paint: Paint) -> String {
    let mut out = String::new();
    let Revoked { images, orders, statements } = &revocation.revoked;
    putln!(out, "revoke on every node, for good: {}\n", printable(&revocation.reason));
    for image in images {
        putln!(out, "{}", paint.bold(&format!("image {image}")));
        match known.live.get(image) {
            None => putln!(out, "  runs on no node that answered"),
            Some(apps) => {
                for (app, nodes) in apps {
                    let nodes: Vec<String> =
                        nodes.iter().map(|(node, release)| format!("{node} (release {release})")).collect();
                    putln!(out, "  {app} runs of it and goes on until it is stopped: {}", nodes.join(", "));
                }
            }
        }
    }
    orders.iter().for_each(|order| putln!(out, "{}", paint.bold(&format!("order {order}"))));
    statements.iter().for_each(|statement| putln!(out, "{}", paint.bold(&format!("statement {statement}"))));
    if !known.away.is_empty() {
        let away: Vec<&str> = known.away.iter().map(NodeName::as_str).collect();
        putln!(out, "not known of {}, which did not answer", away.join(", "));
    }
    out
}

impl Known {
    async fn ask(session: &Session) -> Result<Self> {
        let nodes = session.files.all_nodes(None)?;
        let answers = session.ask_all(&nodes, As::Courier, |client| async move { client.releases(None).await }).await?;
        let mut known = Self::of(answers);
        known.images.extend(session.memory.documents());
        Ok(known)
    }

    fn of(answers: Vec<Answer<Vec<Release>>>) -> Self {
        let mut known = Self::default();
        for Answer { node, result } in answers {
            let Ok(releases) = result else {
                known.away.push(node);
                continue;
            };
            for release in releases {
                let Some(image) = release.image else { continue };
                known.images.insert(image);
                if release.live {
                    let apps = known.live.entry(image).or_default();
                    apps.entry(release.app).or_default().push((node.clone(), release.number));
                }
            }
        }
        known
    }

    /// The one image that is meant. A whole id may be unknown: the order that brings the image may be yet to come.
    fn image(&self, beginning: &Beginning) -> Result<ImageId> {
        let Beginning(text) = beginning;
        if let Ok(whole) = text.parse() {
            return Ok(whole);
        }
        let found: Vec<String> =
            self.images.iter().map(ToString::to_string).filter(|image| image.starts_with(text)).collect();
        match found.as_slice() {
            [] => Err(Error::usage(format!(
                "no image is known here, or to a node that answered, that begins with {text}"
            ))
            .hint("`bulkhead releases` shows images; a whole id, as `-o json` has it, need not be known")),
            [only] => only.parse().map_err(|error| Error::of(crate::error::Kind::Internal, &error)),
            several => {
                let more = if several.len() > SHOWN_MAX { ", …" } else { "" };
                Err(Error::usage(format!("{text} begins the ids of {} images", several.len()))
                    .hint(format!("they are {}{more}", several[..several.len().min(SHOWN_MAX)].join(", "))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use bulkhead_core::Timestamp;
    use bulkhead_wire::Outcome;

    fn image(first: u8, second: u8) -> ImageId {
        let mut bytes = [7; 32];
        bytes[..3].copy_from_slice(&[0xab, first, second]);
        ImageId(bytes)
    }

    fn release(number: u64, image: ImageId, live: bool) -> Release {
        Release {
            app: "notes".parse().unwrap(),
            number,
            order: OrderId([0; 32]),
            verb: "run".into(),
            image: Some(image),
            image_present: live,
            signers: vec![],
            accepted: Timestamp(1),
            outcome: Outcome::Done,
            live,
            source: None,
            origin: None,
            message: None,
            services: vec![],
            signed: None,
            statements: vec![],
            standing: None,
            grounds: None,
            break_glass: None,
        }
    }

    fn known() -> Known {
        let answer = |node: &str, result| Answer { node: node.parse().unwrap(), result };
        let away = Err(Error::new(Kind::Unreachable, "away"));
        Known::of(vec![
            answer("n1", Ok(vec![release(1, image(1, 1), false), release(2, image(2, 1), true)])),
            answer("n2", Ok(vec![release(5, image(2, 1), true), release(4, image(2, 2), false)])),
            answer("n3", away),
        ])
    }

    #[test]
    fn beginnings_of_ids() {
        let known = known();
        let find = |text: &str| known.image(&text.parse().unwrap()).map_err(|error| (error.kind, error.message));
        assert_eq!(find("ab01"), Ok(image(1, 1)));
        assert_eq!(find("ab0202"), Ok(image(2, 2)));
        assert_eq!(find(&image(2, 1).to_string()), Ok(image(2, 1)));
        // Nobody knows it, and it is whole.
        assert_eq!(find(&image(9, 9).to_string()), Ok(image(9, 9)));
        for (text, words) in [("ab02", "begins the ids of 2 images"), ("ab09", "that begins with ab09")] {
            let (kind, message) = find(text).unwrap_err();
            assert!(kind == Kind::Usage && message.contains(words), "{message}");
        }
        for bad in ["", "ab0", "AB01", "xyz1", &"a".repeat(65)] {
            assert!(bad.parse::<Beginning>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_runs_of_it_is_shown() {
        let known = known();
        let revoked = Revoked {
            images: [image(1, 1), image(2, 1)].into(),
            orders: [OrderId([3; 32])].into(),
            statements: BTreeSet::new(),
        };
        let fleet = "acme".parse().unwrap();
        let revocation = Revocation { format: 1, fleet, issued: Timestamp(1), reason: "it \u{7}leaks".into(), revoked };
        insta::assert_snapshot!(preview(&revocation, &known, Paint { colour: false }));
    }
}
