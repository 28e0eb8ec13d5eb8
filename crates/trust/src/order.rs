//! Whether a node carries an order out.
//!
//! Signatures come first: an order is not read before a key that the policy
//! gives a say in orders has signed its exact bytes. Then it is read, and must
//! be for this node and this time; then it must meet what its environment
//! demands of its kind:
//!
//! | order | needs |
//! |---|---|
//! | run an image | one of the environment's ways (`accepts`), or to be a fallback of what is live and one release key, or to break glass with as many release keys as the environment says |
//! | stop, restart | one release key |
//! | start, remove | as many release keys as the environment's easiest way |
//! | look with a tool | as many release keys as the environment says for it (`look`) |
//!
//! Last comes where the app stands on the node. Its counter goes up by exactly
//! one, so no thief of a key can use counters up; see [`FLOOR_STEP_MAX`].

use crate::{
    Refusal, Rule, SignedText, Verified,
    green::{Colour, colour},
    signers::{Found, holders, presented_by, signers},
};
use bulkhead_core::{
    AppName, BootId, EnvironmentName, FleetName, ImageId, NodeName, OrderId, RunId, SecretDigest, SecretName,
    Timestamp,
    notice::{Heartbeat, Revoked},
    order::{Action, NAMESPACE, ORDER_MAX_BYTES, Order, Run, Target},
    policy::{Demand, Environment, Isolation, Policy, Role},
    standing::{NAMESPACE as STANDING_NAMESPACE, STANDING_MAX_BYTES, StandingOrder},
};
use std::collections::{BTreeMap, BTreeSet};

/// How far ahead of the node's clock an order may have been issued: clocks of
/// operators' machines differ by minutes, not by hours.
pub const CLOCK_SKEW_S: i64 = 600;

/// How long an order may last, whatever its signer wrote: one that was captured before it was used is a danger for
/// no longer.
pub const LIFETIME_MAX_S: i64 = 2 * 3600;

/// How far a floor may lift a counter at once, and how far an order may be ahead of a node to be proof that the node
/// has forgotten something: far more orders than a snapshot is old, and so few that a stolen key cannot use up the
/// counters of an app, which have 64 bits.
pub const FLOOR_STEP_MAX: u64 = 1_000_000;

/// Who decides: the node and what it knows.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The node's fleet.
    pub fleet: &'a FleetName,
    /// Its environment.
    pub environment: &'a EnvironmentName,
    /// Its name.
    pub node: &'a NodeName,
    /// The policy it enforces.
    pub policy: &'a Policy,
    /// Its clock.
    pub now: Timestamp,
    /// The latest time it has ever known, kept on disk: a clock before it has gone back.
    pub minimum_time: Timestamp,
    /// Its present boot.
    pub boot: BootId,
    /// What the revocations that it was brought say; the policy's own come on top.
    pub revoked: &'a Revoked,
    /// The newest heartbeat that it was brought.
    pub heartbeat: Option<&'a Heartbeat>,
    /// What it offers.
    pub offers: &'a BTreeSet<Isolation>,
}

/// What came.
#[derive(Debug, Clone, Copy)]
pub struct Presented<'a> {
    /// The order's exact bytes.
    pub bytes: &'a [u8],
    /// Armoured SSHSIG signatures over them.
    pub signatures: &'a [String],
    /// Statements about its image.
    pub statements: &'a [SignedText],
    /// A standing order.
    pub standing: Option<&'a SignedText>,
}

/// Where the app stands on the node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// Counter of the last accepted order; 0 where there was none.
    pub counter: u64,
    /// That order.
    pub previous: Option<OrderId>,
    /// How many orders the node must have accepted, as orders prove that it met; see [`Refusal::ahead`].
    pub seen: u64,
    /// What any one release key may put in the place of what is live.
    pub fallback: BTreeSet<RunId>,
    /// What is live.
    pub live: Option<(RunId, ImageId)>,
    /// How often each standing order was used here.
    pub uses: BTreeMap<OrderId, u32>,
    /// The statements about the order's image that the node was brought before.
    pub statements: Vec<SignedText>,
    /// The sealed values that what is live has.
    pub secrets: BTreeMap<SecretName, SecretDigest>,
}

/// Why an order was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grounds {
    /// It runs nothing new, and enough release keys signed it.
    People,
    /// It meets one of the environment's ways.
    Demand(Demand),
    /// It goes back to what was listed to go back to.
    Fallback,
    /// It broke glass.
    BreakGlass,
}

/// An order to carry out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorized {
    /// The order and who signed it.
    pub order: Verified<Order>,
    /// Why.
    pub grounds: Grounds,
    /// Who stated that its image is green, where that was demanded.
    pub green: BTreeSet<String>,
    /// The standing order that it uses.
    pub standing: Option<OrderId>,
}

/// Checks an order's signatures over its exact bytes, then everything it says
/// about whom it is for and when, then what its environment demands. `place` gives where the order's app stands
/// on this node; it is asked only once the order is known to be signed and for this node and time.
///
/// # Errors
/// The first rule that refuses.
pub fn authorize_order(
    presented: &Presented<'_>,
    context: &Context<'_>,
    place: impl FnOnce(&Order) -> Place,
) -> Result<Authorized, Refusal> {
    let Context { policy, environment: name, .. } = *context;
    let signed = Signed::of(presented, policy, name)?;
    let order = Order::parse(presented.bytes).map_err(|error| Refusal::new(Rule::Malformed, error.to_string()))?;
    let target = check_address(&order, context.fleet, name, context.node)?.clone();
    check_time(&order, context)?;
    check_fresh(&order, signed.environment, context)?;
    let place = place(&order);
    let revoked = [&policy.revoked, context.revoked];
    let live = place.live.map(|(_, image)| image);
    check_revoked(&order, OrderId::of(presented.bytes), live, &revoked)?;
    let judge = Judge { presented, policy, signed: &signed, revoked: &revoked, order: &order };
    let granted = match &order.action {
        Action::Run(run) if is_fallback(run, &target, &place) && order.break_glass.is_none() => {
            judge.people(1).map(|()| Granted::plain(Grounds::Fallback))?
        }
        Action::Run(run) => judge.run(run, context.node, context.now, &place)?,
        Action::Stop { .. } | Action::Restart { .. } => judge.people(1).map(|()| Granted::plain(Grounds::People))?,
        Action::Start { .. } | Action::Remove { .. } => {
            judge.people(signed.environment.people()).map(|()| Granted::plain(Grounds::People))?
        }
        Action::Look(_) => judge.look().map(|()| Granted::plain(Grounds::People))?,
    };
    if let Action::Run(run) = &order.action {
        check_isolation(signed.environment, name, context.offers)?;
        check_fallback(run, &granted, &place)?;
    }
    let stops = matches!(order.action, Action::Stop { .. });
    check_place(&target, &order.app, stops, context, &place)?;
    let Granted { grounds, green, standing } = granted;
    Ok(Authorized { order: Verified::new(order, signed.names()), grounds, green, standing })
}

/// Whether it is listed to go back to, with secrets that are there now: new ones are nothing to go back to.
fn is_fallback(run: &Run, target: &Target, place: &Place) -> bool {
    place.fallback.contains(&run.id()) && has_known_secrets(target, place)
}

fn has_known_secrets(target: &Target, place: &Place) -> bool {
    target.secrets.iter().all(|(name, digest)| place.secrets.get(name) == Some(digest))
}

/// What an order lists to go back to is as good as signed in full, so whoever was let in on less may list nothing but
/// what was listed, and what is live.
fn check_fallback(run: &Run, granted: &Granted, place: &Place) -> Result<(), Refusal> {
    let is_in_full = match &granted.grounds {
        Grounds::Demand(demand) => demand.release > 0 && !demand.standing,
        Grounds::BreakGlass => false,
        Grounds::People | Grounds::Fallback => false,
    };
    let is_known = |id: &RunId| place.fallback.contains(id) || place.live.is_some_and(|(live, _)| live == *id);
    if is_in_full || run.fallback.iter().all(is_known) {
        return Ok(());
    }
    let message = "an order that was not signed in full lists something new to go back to";
    Err(Refusal::new(Rule::Threshold, message).hint("leave it out, or have as many sign as for a deploy"))
}

/// Reads an order of which a key with a say in orders signed the exact bytes: enough to know whose lock to wait for, and
/// for nothing else.
///
/// # Errors
/// Nobody who counts has signed it, or it is no order.
pub fn read_signed(
    presented: &Presented<'_>,
    policy: &Policy,
    environment: &EnvironmentName,
) -> Result<Order, Refusal> {
    Signed::of(presented, policy, environment)?;
    Order::parse(presented.bytes).map_err(|error| Refusal::new(Rule::Malformed, error.to_string()))
}

/// Checks an order that a node says it accepted, before anything of it is signed again: that by the policy of
/// today its exact bytes are signed well enough, and that it is what the node says it is. Its time is over and says
/// nothing. That it was a fallback counts for nothing here: what it went back to was signed in full, once.
///
/// # Errors
/// The first rule that refuses.
pub fn verify_accepted(
    presented: &Presented<'_>,
    policy: &Policy,
    accepted: &Accepted<'_>,
) -> Result<Authorized, Refusal> {
    let signed = Signed::of(presented, policy, accepted.environment)?;
    let order = Order::parse(presented.bytes).map_err(|error| Refusal::new(Rule::Malformed, error.to_string()))?;
    let target = check_address(&order, accepted.fleet, accepted.environment, accepted.node)?;
    if order.app != *accepted.app {
        let message = format!("the order is for app `{}`, not `{}`", order.app, accepted.app);
        return Err(Refusal::new(Rule::Malformed, message));
    }
    if target.counter != accepted.counter {
        let message = format!("the order is number {} there, not {}", target.counter, accepted.counter);
        return Err(Refusal::new(Rule::Counter, message));
    }
    let revoked = [&policy.revoked];
    check_revoked(&order, OrderId::of(presented.bytes), None, &revoked)?;
    let judge = Judge { presented, policy, signed: &signed, revoked: &revoked, order: &order };
    let Granted { grounds, green, standing } = match &order.action {
        Action::Run(run) => judge.run(run, accepted.node, order.issued, &Place::default())?,
        _ => judge.people(1).map(|()| Granted::plain(Grounds::People))?,
    };
    Ok(Authorized { order: Verified::new(order, signed.names()), grounds, green, standing })
}

/// What a node says of an order that it accepted.
#[derive(Debug, Clone, Copy)]
pub struct Accepted<'a> {
    /// The fleet.
    pub fleet: &'a FleetName,
    /// The node's environment.
    pub environment: &'a EnvironmentName,
    /// The node.
    pub node: &'a NodeName,
    /// The app.
    pub app: &'a AppName,
    /// The order's counter there.
    pub counter: u64,
}

/// Who signed an order, and the environment that decides what that is worth.
struct Signed<'a> {
    environment: &'a Environment,
    release: Found,
    green: Found,
}

impl<'a> Signed<'a> {
    /// At least one key with a say in orders must have signed these bytes before they are read.
    fn of(presented: &Presented<'_>, policy: &'a Policy, name: &EnvironmentName) -> Result<Self, Refusal> {
        let bytes = presented.bytes;
        if bytes.len() > ORDER_MAX_BYTES {
            return Err(Refusal::new(Rule::Malformed, "the order is longer than 256 KiB"));
        }
        let release = signers(bytes, presented.signatures, NAMESPACE, holders(policy, Role::Release));
        let green = signers(bytes, presented.signatures, NAMESPACE, holders(policy, Role::Green));
        let Some(environment) = policy.environments.get(name) else {
            let message = format!("the policy (version {}) has no environment `{name}`", policy.version);
            return Err(
                Refusal::new(Rule::Environment, message).hint("add it to the policy and have the roots sign it")
            );
        };
        if release.count() == 0 && green.count() == 0 {
            let message =
                format!("an order for `{name}` needs {}; presented: {}", environment.shown(), release.presented());
            return Err(Refusal::new(Rule::Threshold, message).hint(who_could(policy)));
        }
        Ok(Self { environment, release, green })
    }

    fn names(&self) -> Vec<String> {
        let names: BTreeSet<&String> = self.release.names().chain(self.green.names()).collect();
        names.into_iter().cloned().collect()
    }
}

fn who_could(policy: &Policy) -> String {
    let release = format!("release keys are held by {}", policy.names_of(Role::Release));
    match policy.holders(Role::Green).next() {
        Some(_) => format!("{release}; green keys by {}", policy.names_of(Role::Green)),
        None => release,
    }
}

/// What an order was granted on.
struct Granted {
    grounds: Grounds,
    green: BTreeSet<String>,
    standing: Option<OrderId>,
}

impl Granted {
    fn plain(grounds: Grounds) -> Self {
        Self { grounds, green: BTreeSet::new(), standing: None }
    }
}

/// Weighs what came with an order against what its environment demands.
struct Judge<'a> {
    presented: &'a Presented<'a>,
    policy: &'a Policy,
    signed: &'a Signed<'a>,
    revoked: &'a [&'a Revoked],
    order: &'a Order,
}

impl Judge<'_> {
    fn refuse(&self, rule: Rule, needs: &str, presented: &str) -> Refusal {
        let message = format!("an order for `{}` needs {needs}; presented: {presented}", self.order.environment);
        Refusal::new(rule, message).hint(who_could(self.policy))
    }

    /// So many distinct release keys.
    fn people(&self, needed: u32) -> Result<(), Refusal> {
        if self.signed.release.count() >= needed as usize {
            return Ok(());
        }
        let keys = if needed == 1 { "release key" } else { "distinct release keys" };
        let needs = format!("{needed} {keys} to {}", self.order.action.verb());
        Err(self.refuse(Rule::Threshold, &needs, &self.signed.release.presented()))
    }

    fn look(&self) -> Result<(), Refusal> {
        match self.signed.environment.lookers() {
            Some(needed) => self.people(needed),
            None => {
                let message = format!(
                    "no number of release keys may look with tools in `{}`: a tool can change what runs, and what \
                     runs there must be green",
                    self.order.environment
                );
                Err(Refusal::new(Rule::Threshold, message).hint(
                    "the policy can allow it to some (`look`); logs and the views of `bulkhead look` need no tool",
                ))
            }
        }
    }

    /// One of the environment's ways, or broken glass.
    fn run(&self, run: &Run, node: &NodeName, now: Timestamp, place: &Place) -> Result<Granted, Refusal> {
        if self.order.break_glass.is_some() {
            return self.break_glass();
        }
        let Order { fleet, app, .. } = self.order;
        let colour =
            |statements: &[SignedText]| colour(statements, self.policy, self.revoked, fleet, app, run.image, now);
        // What the node knows cannot be crowded out by what comes: a red mark stays.
        let colour = colour(&place.statements).and(colour(self.presented.statements));
        let standing = self.standing(run, node, now, place);
        for demand in &self.signed.environment.accepts {
            if let Some(granted) = self.meets(demand, &colour, &standing) {
                return Ok(granted);
            }
        }
        let release = self.signed.release.count();
        // What is missing is said by the rule that is nearest to being met.
        let nearly = self.signed.environment.accepts.iter().filter(|demand| release >= demand.release as usize);
        let rule = nearly.map(|demand| match &standing {
            Err(_) if demand.standing && is_green(demand, &colour) => Rule::Standing,
            _ if !is_green(demand, &colour) => Rule::NotGreen,
            _ => Rule::Threshold,
        });
        let rule = rule.min_by_key(|rule| *rule != Rule::Standing).unwrap_or(Rule::Threshold);
        let mut presented = presented_by(&self.signed.release, &self.signed.green);
        presented = format!("{presented}; image {} {}", run.image.short(), shown(&colour));
        if let Err(why) = &standing
            && self.signed.environment.accepts.iter().any(|demand| demand.standing)
        {
            presented = format!("{presented}; {why}");
        }
        Err(self.refuse(rule, &self.signed.environment.shown(), &presented))
    }

    fn meets(&self, demand: &Demand, colour: &Colour, standing: &Result<OrderId, String>) -> Option<Granted> {
        let standing = if demand.standing { Some(*standing.as_ref().ok()?) } else { None };
        // Somebody signs the whole order in any case: who brings it must not choose the sandbox.
        let is_signed = match demand.release {
            0 => self.signed.green.count() > 0,
            needed => self.signed.release.count() >= needed as usize,
        };
        let green = if demand.green > 0 { colour.green.clone() } else { BTreeSet::new() };
        (is_signed && is_green(demand, colour)).then(|| Granted {
            grounds: Grounds::Demand(demand.clone()),
            green,
            standing,
        })
    }

    fn break_glass(&self) -> Result<Granted, Refusal> {
        let environment = &self.order.environment;
        let Some(needed) = self.signed.environment.break_glass else {
            let message = format!("the policy allows no breaking of glass in `{environment}`");
            return Err(Refusal::new(Rule::BreakGlass, message)
                .hint("the policy can allow it to a number of release keys (`break_glass`)"));
        };
        if self.signed.release.count() < needed as usize {
            let needs = format!("{needed} distinct release keys to break glass");
            return Err(self.refuse(Rule::BreakGlass, &needs, &self.signed.release.presented()));
        }
        Ok(Granted::plain(Grounds::BreakGlass))
    }

    /// The standing order that covers it, or why none does.
    fn standing(&self, run: &Run, node: &NodeName, now: Timestamp, place: &Place) -> Result<OrderId, String> {
        let signed = self.presented.standing.ok_or("no standing order")?;
        let bytes = signed.text.as_bytes();
        if bytes.len() > STANDING_MAX_BYTES {
            return Err("the standing order is longer than 256 KiB".into());
        }
        let needed = self.signed.environment.people();
        let found = signers(bytes, &signed.signatures, STANDING_NAMESPACE, holders(self.policy, Role::Release));
        if found.count() < needed as usize {
            return Err(format!("a standing order that needs {needed} release key(s) and has {}", found.presented()));
        }
        let standing = StandingOrder::parse(bytes)?;
        standing.covers(self.order, run, node, now)?;
        let id = StandingOrder::id(bytes);
        if self.revoked.iter().any(|revoked| revoked.orders.contains(&id)) {
            return Err("the standing order was revoked".into());
        }
        // Whoever may choose the image must not choose what it connects to.
        if self.order.targets.get(node).is_some_and(|target| !has_known_secrets(target, place)) {
            return Err("a standing order covers no secrets other than those of what runs".into());
        }
        let used = place.uses.get(&id).copied().unwrap_or(0);
        if used >= standing.uses_max {
            return Err(format!("the standing order was used {used} times here, as often as it allows"));
        }
        Ok(id)
    }
}

fn is_green(demand: &Demand, colour: &Colour) -> bool {
    demand.green == 0 || (colour.red.is_empty() && colour.green.len() >= demand.green as usize)
}

fn shown(colour: &Colour) -> String {
    let names = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
    let mut text = if !colour.red.is_empty() {
        format!("is marked red by {}", names(&colour.red))
    } else if colour.green.is_empty() {
        "is stated green by nobody".into()
    } else {
        format!("is stated green by {}", names(&colour.green))
    };
    for note in colour.notes.iter().take(3) {
        text.push_str("; ");
        text.push_str(note);
    }
    text
}

fn check_address<'a>(
    order: &'a Order,
    fleet: &FleetName,
    environment: &EnvironmentName,
    node: &NodeName,
) -> Result<&'a Target, Refusal> {
    if order.fleet != *fleet {
        let message = format!("the order is for fleet `{}`; this node is of `{fleet}`", order.fleet);
        return Err(Refusal::new(Rule::Fleet, message));
    }
    if order.environment != *environment {
        let message = format!("the order is for environment `{}`; this node is of `{environment}`", order.environment);
        return Err(Refusal::new(Rule::Environment, message));
    }
    order.targets.get(node).ok_or_else(|| {
        let named: Vec<&str> = order.targets.keys().take(5).map(NodeName::as_str).collect();
        Refusal::new(Rule::Node, format!("the order is for {}; this node is `{node}`", named.join(", ")))
    })
}

fn check_time(order: &Order, context: &Context<'_>) -> Result<(), Refusal> {
    if context.now < context.minimum_time {
        let message = format!("the node's clock says {}, but it has known {}", context.now, context.minimum_time);
        return Err(Refusal::new(Rule::Clock, message).hint("set the node's clock right"));
    }
    if order.not_after <= context.now {
        let message = format!("the order expired at {}; the node's clock says {}", order.not_after, context.now);
        return Err(Refusal::new(Rule::Expired, message).hint("sign it again, or compare the clocks"));
    }
    if order.not_after.0.saturating_sub(order.issued.0) > LIFETIME_MAX_S {
        let message = format!("the order was issued at {} to last until {}", order.issued, order.not_after);
        return Err(Refusal::new(Rule::Expired, message).hint("an order lasts two hours at most; sign it again"));
    }
    if order.issued > context.now.plus_s(CLOCK_SKEW_S) {
        let message = format!("the order was issued at {}; the node's clock says {}", order.issued, context.now);
        return Err(Refusal::new(Rule::Expired, message).hint("compare the clocks"));
    }
    Ok(())
}

/// Whether the node knows what it ought to know before it starts anything. What runs goes on, and can be stopped.
fn check_fresh(order: &Order, environment: &Environment, context: &Context<'_>) -> Result<(), Refusal> {
    if !matches!(order.action, Action::Run(_) | Action::Start { .. } | Action::Look(_)) {
        return Ok(());
    }
    let version = context.policy.version;
    let told = context.heartbeat.map_or(0, |heartbeat| heartbeat.policy).max(order.policy);
    if told > version {
        let message = format!("there is a policy of version {told}; this node has version {version}");
        return Err(Refusal::new(Rule::Stale, message).hint("bring it: `bulkhead policy push`"));
    }
    let Some(period) = environment.heartbeat_s else { return Ok(()) };
    let heard = context.heartbeat.map(|heartbeat| heartbeat.issued);
    if heard.is_none_or(|heard| heard.plus_s(i64::from(period)) < context.now) {
        let heard = heard.map_or_else(|| "never".into(), |heard| format!("last at {heard}"));
        let message = format!(
            "the policy demands a heartbeat every {period} seconds in `{}`; this node heard one {heard}",
            order.environment
        );
        return Err(Refusal::new(Rule::Stale, message)
            .hint("whoever holds a release or green key gives one: `bulkhead policy heartbeat`"));
    }
    Ok(())
}

fn check_revoked(order: &Order, id: OrderId, live: Option<ImageId>, revoked: &[&Revoked]) -> Result<(), Refusal> {
    let image: Option<ImageId> = match &order.action {
        Action::Run(run) => Some(run.image),
        Action::Look(tool) => Some(tool.image),
        // They start what is live.
        Action::Start { .. } | Action::Restart { .. } => live,
        _ => None,
    };
    if let Some(image) = image.filter(|image| revoked.iter().any(|revoked| revoked.images.contains(image))) {
        let message = format!("image {} was revoked", image.short());
        return Err(Refusal::new(Rule::Revoked, message).hint("build a new one; what is revoked stays so"));
    }
    if revoked.iter().any(|revoked| revoked.orders.contains(&id)) {
        return Err(Refusal::new(Rule::Revoked, format!("order {} was revoked", id.short())));
    }
    Ok(())
}

fn check_isolation(
    environment: &Environment,
    name: &EnvironmentName,
    offers: &BTreeSet<Isolation>,
) -> Result<(), Refusal> {
    let missing: Vec<&str> = environment.requires.difference(offers).map(|missing| missing.as_str()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let message = format!("the policy demands {} of nodes in `{name}`; this node has not got it", missing.join(", "));
    Err(Refusal::new(Rule::Isolation, message).hint("`bulkhead node ls` shows what each node offers, and why not"))
}

fn check_place(
    target: &Target,
    app: &AppName,
    stops: bool,
    context: &Context<'_>,
    place: &Place,
) -> Result<(), Refusal> {
    let Place { counter, previous, seen, .. } = *place;
    let floor = target.floor.unwrap_or(0);
    let reach = counter.saturating_add(FLOOR_STEP_MAX);
    if floor > reach {
        let message = format!("a floor of {floor} is more than {FLOOR_STEP_MAX} above {counter}, where `{app}` stands");
        return Err(Refusal::new(Rule::Counter, message));
    }
    let used = counter.max(floor);
    let restored = |known: u64| {
        let message = format!(
            "this node knows of {counter} orders for `{app}`, and {known} were accepted: it was put back to a snapshot"
        );
        Refusal::new(Rule::Restored, message).hint("look at its volumes too; to go on from here: `--accept-restored`")
    };
    // To forbid needs less than to allow: whoever made it look so must not keep others from stopping.
    if seen > used && !stops {
        return Err(restored(seen));
    }
    // Signed well enough, for this node, in time, and beyond what the node knows: it has forgotten something.
    let ahead = target.counter.saturating_sub(1);
    if ahead > used && ahead <= reach && !stops {
        return Err(Refusal { ahead: Some(ahead), ..restored(ahead) });
    }
    if target.boot != context.boot {
        let message = format!("the order was signed for an earlier boot of `{}`", context.node);
        return Err(Refusal::new(Rule::Boot, message).hint("sign it again"));
    }
    if used.checked_add(1) != Some(target.counter) {
        let message = format!("the order is number {} for `{app}` here; the last accepted was {used}", target.counter);
        return Err(Refusal::new(Rule::Counter, message).hint("another order came first, or this one was used already"));
    }
    if target.previous != previous {
        let name = |id: Option<OrderId>| id.map_or_else(|| "none".into(), |id| id.short());
        let message = format!(
            "the order follows order {}; the last accepted for `{app}` was {}",
            name(target.previous),
            name(previous)
        );
        return Err(Refusal::new(Rule::Previous, message).hint("look at what was deployed since, then sign again"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{green, policy::tests::policy, sshsig::tests::TestKey};
    use bulkhead_core::{
        order::{Health, HealthCheck, Rights, ServiceSpec, Tool},
        policy::Key,
        statement::TestResult,
    };

    const NOW: Timestamp = Timestamp(1_000_000);
    const BOOT: BootId = BootId([9; 32]);
    /// The seed of `ci`'s key; people are 1 (ada), 2 (bob) and 5 (cleo).
    const CI: u8 = 3;

    fn target(counter: u64, previous: Option<u8>) -> Target {
        Target::new(counter, previous.map(|byte| OrderId([byte; 32])), BOOT)
    }

    fn service() -> ServiceSpec {
        ServiceSpec {
            name: "web".parse().unwrap(),
            command: vec!["/app".into()],
            workdir: "/".into(),
            env: BTreeMap::new(),
            port: None,
            health: Health { check: HealthCheck::StaysUp, within_ms: 1000 },
            volumes: vec![],
            memory_max_bytes: None,
            tasks_max: None,
            cpu_percent: None,
            jit: false,
            drain_ms: 0,
            stop_ms: 0,
            secrets: std::collections::BTreeSet::new(),
        }
    }

    fn run() -> Run {
        Run {
            image: green::tests::IMAGE,
            services: vec![service()],
            source: None,
            origin: None,
            fallback: BTreeSet::new(),
        }
    }

    fn look() -> Action {
        Action::Look(Tool {
            service: "web".parse().unwrap(),
            image: ImageId([8; 32]),
            command: vec!["strace".into()],
            rights: Rights::Trace,
            within_ms: 1000,
        })
    }

    fn order(action: Action) -> Order {
        Order {
            format: 1,
            fleet: "acme".parse().unwrap(),
            environment: "staging".parse().unwrap(),
            app: "notes".parse().unwrap(),
            targets: [("n1".parse().unwrap(), target(5, Some(5)))].into(),
            issued: NOW,
            not_after: NOW.plus_s(600),
            policy: 1,
            action,
            break_glass: None,
            message: None,
        }
    }

    /// An order through a node `n1`, with what the case changes.
    struct Case {
        order: Order,
        signers: Vec<u8>,
        environment: Environment,
        place: Place,
        now: Timestamp,
        minimum_time: Timestamp,
        boot: BootId,
        namespace: &'static str,
        tamper: fn(&mut Vec<u8>),
        statements: Vec<SignedText>,
        standing: Option<(StandingOrder, Vec<u8>)>,
        uses: u32,
        revoked: Revoked,
        heartbeat: Option<Heartbeat>,
        offers: BTreeSet<Isolation>,
        policy_revoked: Revoked,
    }

    fn key(seed: u8) -> TestKey {
        TestKey::new(seed)
    }

    fn full_policy(environment: &Environment) -> Policy {
        let (ada, bob, cleo, ci) = (key(1), key(2), key(5), key(CI));
        let mut policy = policy(1, &[&ada], 1, &[("ada", &ada), ("bob", &bob), ("cleo", &cleo)], 1);
        let green = Key { key: ci.public.to_openssh(), roles: [Role::Green].into(), verify_user: false };
        policy.keys.insert("ci".parse().unwrap(), green);
        policy.environments.insert("staging".parse().unwrap(), environment.clone());
        policy
    }

    impl Case {
        fn new(action: Action) -> Self {
            Self {
                order: order(action),
                signers: vec![1],
                environment: Environment::accepting(Demand::release(1)),
                place: Place { counter: 4, previous: Some(OrderId([5; 32])), ..Place::default() },
                now: NOW,
                minimum_time: NOW,
                boot: BOOT,
                namespace: NAMESPACE,
                tamper: |_| {},
                statements: vec![],
                standing: None,
                uses: 0,
                revoked: Revoked::default(),
                heartbeat: None,
                offers: BTreeSet::new(),
                policy_revoked: Revoked::default(),
            }
        }

        fn run(mut self) -> Result<Authorized, Refusal> {
            let mut policy = full_policy(&self.environment);
            policy.revoked = self.policy_revoked;
            let mut bytes = self.order.to_bytes();
            let signatures: Vec<String> =
                self.signers.iter().map(|seed| key(*seed).sign(self.namespace, &bytes)).collect();
            (self.tamper)(&mut bytes);
            let standing = self.standing.map(|(standing, seeds)| {
                let bytes = standing.to_bytes();
                self.place.uses.insert(StandingOrder::id(&bytes), self.uses);
                let signatures = seeds.iter().map(|seed| key(*seed).sign(STANDING_NAMESPACE, &bytes)).collect();
                SignedText { text: String::from_utf8(bytes).unwrap(), signatures }
            });
            let context = Context {
                fleet: &"acme".parse().unwrap(),
                environment: &"staging".parse().unwrap(),
                node: &"n1".parse().unwrap(),
                policy: &policy,
                now: self.now,
                minimum_time: self.minimum_time,
                boot: self.boot,
                revoked: &self.revoked,
                heartbeat: self.heartbeat.as_ref(),
                offers: &self.offers,
            };
            let presented = Presented {
                bytes: &bytes,
                signatures: &signatures,
                statements: &self.statements,
                standing: standing.as_ref(),
            };
            authorize_order(&presented, &context, |_| self.place)
        }
    }

    type Expected<'a> = Result<&'a [&'a str], (Rule, &'a str)>;

    fn compare(found: Result<Authorized, Refusal>, expected: Expected<'_>) {
        match (found, expected) {
            (Ok(authorized), Ok(signers)) => assert_eq!(authorized.order.signers(), signers),
            (Err(refusal), Err((rule, words))) => {
                assert_eq!(refusal.rule, rule, "{refusal}");
                assert!(refusal.message.contains(words), "{refusal}");
            }
            (got, expected) => panic!("{got:?} instead of {expected:?}"),
        }
    }

    /// An order to stop.
    fn check(change: impl FnOnce(&mut Case), expected: Expected<'_>) {
        let mut case = Case::new(Action::Stop { services: vec![] });
        change(&mut case);
        compare(case.run(), expected);
    }

    /// An order to start.
    fn check_start(change: impl FnOnce(&mut Case), expected: Expected<'_>) {
        let mut case = Case::new(Action::Start { services: vec![] });
        change(&mut case);
        compare(case.run(), expected);
    }

    /// An order to run.
    fn check_run(accepts: &[Demand], change: impl FnOnce(&mut Case), expected: Expected<'_>) {
        let mut case = Case::new(Action::Run(run()));
        case.environment.accepts = accepts.to_vec();
        change(&mut case);
        compare(case.run(), expected);
    }

    fn green() -> Vec<SignedText> {
        vec![green::tests::signed(&green::tests::statement(TestResult::Passed), &[&key(CI)])]
    }

    #[test]
    fn an_order_lasts_two_hours_at_most() {
        let last = |seconds: i64, expected| check(|case| case.order.not_after = NOW.plus_s(seconds), expected);
        last(LIFETIME_MAX_S, Ok(&["ada"]));
        last(LIFETIME_MAX_S + 1, Err((Rule::Expired, "to last until")));
        last(i64::MAX - NOW.0, Err((Rule::Expired, "to last until")));
    }

    #[test]
    fn what_a_node_says_it_accepted() {
        let policy = full_policy(&Environment {
            accepts: vec![Demand::green_and_release(1)],
            break_glass: Some(2),
            ..Environment::accepting(Demand::release(1))
        });
        let (fleet, environment) = ("acme".parse().unwrap(), "staging".parse().unwrap());
        let (node, app) = ("n1".parse().unwrap(), "notes".parse().unwrap());
        let accepted = Accepted { fleet: &fleet, environment: &environment, node: &node, app: &app, counter: 5 };
        let good_order = order(Action::Run(run()));
        let bytes = good_order.to_bytes();
        let signed = |seeds: &[u8], bytes: &[u8]| -> Vec<String> {
            seeds.iter().map(|seed| key(*seed).sign(NAMESPACE, bytes)).collect()
        };
        let check = |bytes: &[u8], signatures: &[String], statements: &[SignedText], accepted: &Accepted<'_>| {
            let presented = Presented { bytes, signatures, statements, standing: None };
            verify_accepted(&presented, &policy, accepted).map_err(|refusal| refusal.rule)
        };
        let good = signed(&[1], &bytes);
        // Long after it has expired.
        assert_eq!(check(&bytes, &good, &green(), &accepted).unwrap().order.value(), &good_order);
        assert_eq!(check(&bytes, &good, &[], &accepted), Err(Rule::NotGreen));
        assert_eq!(check(&bytes, &[], &green(), &accepted), Err(Rule::Threshold));
        assert_eq!(check(&bytes, &signed(&[9], &bytes), &green(), &accepted), Err(Rule::Threshold));
        assert_eq!(check(&bytes, &[key(1).sign("file", &bytes)], &green(), &accepted), Err(Rule::Threshold));
        let other = Order { message: Some("altered".into()), ..good_order.clone() }.to_bytes();
        assert_eq!(check(&other, &good, &green(), &accepted), Err(Rule::Threshold));
        assert_eq!(check(&bytes, &good, &green(), &Accepted { counter: 4, ..accepted }), Err(Rule::Counter));
        let (another_node, another_app) = ("n2".parse().unwrap(), "other".parse().unwrap());
        assert_eq!(check(&bytes, &good, &green(), &Accepted { node: &another_node, ..accepted }), Err(Rule::Node));
        assert_eq!(check(&bytes, &good, &green(), &Accepted { app: &another_app, ..accepted }), Err(Rule::Malformed));
        let another_fleet = "evil".parse().unwrap();
        assert_eq!(check(&bytes, &good, &green(), &Accepted { fleet: &another_fleet, ..accepted }), Err(Rule::Fleet));
        let broken = Order { break_glass: Some("CI is down".into()), ..good_order.clone() }.to_bytes();
        let found = check(&broken, &signed(&[1, 2], &broken), &[], &accepted).unwrap();
        assert_eq!(found.grounds, Grounds::BreakGlass);
        assert_eq!(check(&broken, &signed(&[1], &broken), &green(), &accepted), Err(Rule::BreakGlass));
        let stop = order(Action::Stop { services: vec![] }).to_bytes();
        assert_eq!(check(&stop, &signed(&[1], &stop), &[], &accepted).unwrap().grounds, Grounds::People);
        assert_eq!(check(&stop, &signed(&[CI], &stop), &[], &accepted), Err(Rule::Threshold));
        let mut stricter = policy.clone();
        stricter.revoked.images.insert(green::tests::IMAGE);
        let presented = Presented { bytes: &bytes, signatures: &good, statements: &green(), standing: None };
        assert_eq!(verify_accepted(&presented, &stricter, &accepted).unwrap_err().rule, Rule::Revoked);
    }

    #[test]
    fn accepted() {
        check(|_| {}, Ok(&["ada"]));
        check(|case| case.signers = vec![1, 2], Ok(&["ada", "bob"]));
        check(|case| case.signers = vec![2, 1, 1, CI], Ok(&["ada", "bob", "ci"]));
        check(|case| case.now = NOW.plus_s(599), Ok(&["ada"]));
        check(|case| case.order.issued = NOW.plus_s(CLOCK_SKEW_S), Ok(&["ada"]));
        check(
            |case| {
                case.place = Place::default();
                case.order.targets.insert("n1".parse().unwrap(), target(1, None));
            },
            Ok(&["ada"]),
        );
    }

    #[test]
    fn signatures() {
        check(|case| case.signers.clear(), Err((Rule::Threshold, "presented: no signature")));
        check(|case| case.signers = vec![9], Err((Rule::Threshold, "has no such role here")));
        check(|case| case.namespace = "policy@bulkhead", Err((Rule::Threshold, "documents of kind")));
        check(|case| case.tamper = |bytes| bytes.push(b' '), Err((Rule::Threshold, "does not match the document")));
        check(|case| case.tamper = |bytes| bytes.resize(ORDER_MAX_BYTES + 1, 0), Err((Rule::Malformed, "longer than")));
        check(|case| case.tamper = |bytes| bytes.resize(ORDER_MAX_BYTES, 0), Err((Rule::Threshold, "does not match")));
    }

    #[test]
    fn whom_it_is_for() {
        check(|case| case.order.fleet = "other".parse().unwrap(), Err((Rule::Fleet, "fleet `other`")));
        check(|case| case.order.environment = "production".parse().unwrap(), Err((Rule::Environment, "`production`")));
        check(
            |case| {
                let target = case.order.targets.pop_first().unwrap().1;
                case.order.targets.insert("n2".parse().unwrap(), target);
            },
            Err((Rule::Node, "for n2; this node is `n1`")),
        );
    }

    #[test]
    fn an_environment_that_the_policy_has_not() {
        let policy = policy(1, &[&key(1)], 1, &[("ada", &key(1))], 1);
        let bytes = order(Action::Stop { services: vec![] }).to_bytes();
        let signatures = [key(1).sign(NAMESPACE, &bytes)];
        let presented = Presented { bytes: &bytes, signatures: &signatures, statements: &[], standing: None };
        let refusal = Signed::of(&presented, &policy, &"production".parse().unwrap()).map(|_| ()).unwrap_err();
        assert_eq!(refusal.rule, Rule::Environment);
    }

    #[test]
    fn who_may_do_what_without_an_image() {
        let strict = Environment {
            accepts: vec![Demand::green_and_release(2)],
            look: Some(3),
            ..Environment::accepting(Demand::release(1))
        };
        let services = vec![];
        for (action, needed) in [
            (Action::Stop { services: services.clone() }, 1),
            (Action::Restart { services: services.clone() }, 1),
            (Action::Start { services }, 2),
            (Action::Remove { volumes: true }, 2),
            (look(), 3),
        ] {
            for (signers, count) in
                [(vec![CI], 0), (vec![1], 1), (vec![1, 1, CI], 1), (vec![1, 2], 2), (vec![1, 2, 5], 3)]
            {
                let mut case = Case::new(action.clone());
                case.environment = strict.clone();
                case.signers = signers.clone();
                let found = case.run();
                assert_eq!(found.is_ok(), count >= needed, "{} by {signers:?}: {found:?}", action.verb());
                if let Ok(found) = found {
                    assert_eq!(found.grounds, Grounds::People);
                }
            }
        }
    }

    #[test]
    fn tools_where_all_must_be_green() {
        let check = |environment: Environment, signers: &[u8], expected: Expected<'_>| {
            let mut case = Case::new(look());
            (case.environment, case.signers) = (environment, signers.to_vec());
            compare(case.run(), expected);
        };
        let green = Environment::accepting(Demand::green_and_release(1));
        check(green.clone(), &[1, 2, 5], Err((Rule::Threshold, "a tool can change what runs")));
        check(
            Environment { look: Some(2), ..green.clone() },
            &[1],
            Err((Rule::Threshold, "2 distinct release keys to look")),
        );
        check(Environment { look: Some(2), ..green }, &[1, 2], Ok(&["ada", "bob"]));
        check(Environment::accepting(Demand::release(1)), &[1], Ok(&["ada"]));
    }

    #[test]
    fn so_many_release_keys() {
        let two = [Demand::release(2)];
        check_run(&two, |case| case.signers = vec![1, 2], Ok(&["ada", "bob"]));
        check_run(
            &two,
            |case| case.signers = vec![1],
            Err((Rule::Threshold, "needs 2 release keys; presented: a good signature by ada")),
        );
        check_run(&two, |case| case.signers = vec![1, 1], Err((Rule::Threshold, "2 release keys")));
        check_run(&two, |case| case.signers = vec![1, 9], Err((Rule::Threshold, "2 release keys")));
        check_run(&two, |case| case.signers = vec![1, CI], Err((Rule::Threshold, "2 release keys")));
    }

    #[test]
    fn green_and_a_release_key() {
        let both = [Demand::green_and_release(1)];
        check_run(&both, |case| case.statements = green(), Ok(&["ada"]));
        check_run(&both, |_| {}, Err((Rule::NotGreen, "is stated green by nobody")));
        check_run(
            &both,
            |case| (case.statements, case.signers) = (green(), vec![CI]),
            Err((Rule::Threshold, "green and 1 release key")),
        );
        let red = green::tests::signed(&green::tests::statement(TestResult::Failed), &[&key(CI)]);
        check_run(
            &both,
            |case| case.statements = [green(), vec![red.clone()]].concat(),
            Err((Rule::NotGreen, "marked red by ci")),
        );
        // What the node was brought before counts as well, and a red mark however much else comes.
        check_run(&both, |case| case.place.statements = green(), Ok(&["ada"]));
        check_run(
            &both,
            |case| (case.place.statements, case.statements) = (vec![red.clone()], green()),
            Err((Rule::NotGreen, "marked red by ci")),
        );
        // Where green is not asked for, red is not either.
        check_run(&[Demand::release(1)], |case| case.statements = vec![red.clone()], Ok(&["ada"]));
        let forged = green::tests::signed(&green::tests::statement(TestResult::Passed), &[&key(1)]);
        check_run(&both, |case| case.statements = vec![forged], Err((Rule::NotGreen, "needs a green key")));
        let id = bulkhead_core::StatementId::of(green()[0].text.as_bytes());
        for by_policy in [false, true] {
            check_run(
                &both,
                |case| {
                    case.statements = green();
                    let revoked = if by_policy { &mut case.policy_revoked } else { &mut case.revoked };
                    revoked.statements.insert(id);
                },
                Err((Rule::NotGreen, "was revoked")),
            );
        }
        check_run(
            &[Demand { release: 1, green: 2, standing: false }],
            |case| case.statements = [green(), green()].concat(),
            Err((Rule::NotGreen, "green by 2")),
        );
    }

    #[test]
    fn one_way_or_the_other() {
        let accepts = [Demand::release(2), Demand { release: 0, green: 1, standing: false }];
        check_run(&accepts, |case| case.signers = vec![1, 2], Ok(&["ada", "bob"]));
        check_run(&accepts, |case| (case.signers, case.statements) = (vec![CI], green()), Ok(&["ci"]));
        check_run(&accepts, |case| case.signers = vec![CI], Err((Rule::NotGreen, "2 release keys, or green")));
        // Whoever brings a green image must not choose how it runs: the order itself needs a key that counts.
        check_run(
            &accepts,
            |case| (case.signers, case.statements) = (vec![1], green()),
            Err((Rule::Threshold, "presented")),
        );
        check_run(
            &accepts,
            |case| (case.signers, case.statements) = (vec![9], green()),
            Err((Rule::Threshold, "presented")),
        );
    }

    #[test]
    fn standing_orders() {
        let accepts = [Demand { release: 0, green: 1, standing: true }];
        let standing = StandingOrder {
            format: 1,
            fleet: "acme".parse().unwrap(),
            environment: "staging".parse().unwrap(),
            app: "notes".parse().unwrap(),
            nodes: BTreeSet::new(),
            services: vec![service()],
            issued: NOW,
            not_after: NOW.plus_s(3600),
            uses_max: 2,
        };
        let id = StandingOrder::id(&standing.to_bytes());
        let check = |change: fn(&mut Case), expected: Expected<'_>| {
            check_run(
                &accepts,
                |case| {
                    (case.signers, case.statements) = (vec![CI], green());
                    case.standing = Some((standing.clone(), vec![1]));
                    change(case);
                },
                expected,
            );
        };
        check(|_| {}, Ok(&["ci"]));
        check(|case| case.uses = 1, Ok(&["ci"]));
        check(|case| case.uses = 2, Err((Rule::Standing, "used 2 times here")));
        check(|case| case.standing = None, Err((Rule::Standing, "no standing order")));
        check(|case| case.statements.clear(), Err((Rule::NotGreen, "by nobody")));
        check(|case| case.standing.as_mut().unwrap().1 = vec![CI], Err((Rule::Standing, "needs 1 release key")));
        check(|case| case.standing.as_mut().unwrap().1 = vec![], Err((Rule::Standing, "no signature")));
        check(|case| case.standing.as_mut().unwrap().0.uses_max = 0, Err((Rule::Standing, "no order at all")));
        check(
            |case| {
                let Action::Run(run) = &mut case.order.action else { return };
                run.services[0].env.insert("A".into(), "b".into());
            },
            Err((Rule::Standing, "other settings")),
        );
        check_run(
            &accepts,
            |case| {
                (case.signers, case.statements) = (vec![CI], green());
                case.standing = Some((standing.clone(), vec![1]));
                case.revoked.orders.insert(id);
            },
            Err((Rule::Standing, "was revoked")),
        );
        // A person who signs the order needs one all the same, where that is the only way.
        check_run(
            &[Demand { release: 1, green: 0, standing: true }],
            |_| {},
            Err((Rule::Standing, "no standing order")),
        );
        let mut case = Case::new(Action::Run(run()));
        case.environment.accepts = accepts.to_vec();
        (case.signers, case.statements) = (vec![CI], green());
        case.standing = Some((standing, vec![1]));
        let found = case.run().unwrap();
        assert_eq!((found.standing, found.green), (Some(id), ["ci".to_owned()].into()));
    }

    #[test]
    fn a_standing_order_needs_as_many_as_it_stands_for() {
        let accepts = [Demand { release: 0, green: 1, standing: true }, Demand::green_and_release(2)];
        // One key is enough for the easiest way's own count.
        let standing = |seeds: Vec<u8>| {
            let standing = StandingOrder {
                format: 1,
                fleet: "acme".parse().unwrap(),
                environment: "staging".parse().unwrap(),
                app: "notes".parse().unwrap(),
                nodes: BTreeSet::new(),
                services: vec![service()],
                issued: NOW,
                not_after: NOW.plus_s(3600),
                uses_max: 2,
            };
            Some((standing, seeds))
        };
        check_run(
            &accepts,
            |case| {
                (case.signers, case.statements) = (vec![CI], green());
                case.standing = standing(vec![1]);
            },
            Err((Rule::Standing, "needs 2 release key(s)")),
        );
        check_run(
            &accepts,
            |case| {
                (case.signers, case.statements) = (vec![CI], green());
                case.standing = standing(vec![1, 2]);
            },
            Ok(&["ci"]),
        );
    }

    #[test]
    fn going_back() {
        let strict = [Demand::green_and_release(2)];
        let with = |case: &mut Case| case.place.fallback.extend([run().id()]);
        check_run(&strict, with, Ok(&["ada"]));
        check_run(&strict, |_| {}, Err((Rule::Threshold, "green and 2 release keys")));
        check_run(
            &strict,
            |case| {
                with(case);
                case.signers = vec![CI];
            },
            Err((Rule::Threshold, "1 release key to run")),
        );
        // The very image with other settings is something else.
        check_run(
            &strict,
            |case| {
                with(case);
                let Action::Run(run) = &mut case.order.action else { return };
                run.services[0].env.insert("A".into(), "b".into());
            },
            Err((Rule::Threshold, "green and 2")),
        );
        for by_policy in [false, true] {
            check_run(
                &strict,
                |case| {
                    with(case);
                    let revoked = if by_policy { &mut case.policy_revoked } else { &mut case.revoked };
                    revoked.images.insert(green::tests::IMAGE);
                },
                Err((Rule::Revoked, "was revoked")),
            );
        }
        let mut case = Case::new(Action::Run(run()));
        with(&mut case);
        assert_eq!(case.run().unwrap().grounds, Grounds::Fallback);
    }

    #[test]
    fn what_is_listed_to_go_back_to_is_signed_in_full() {
        let evil = RunId([6; 32]);
        let list = |case: &mut Case, id: RunId| {
            let Action::Run(run) = &mut case.order.action else { return };
            run.fallback = [id].into();
        };
        let going_back = |case: &mut Case| case.place.fallback.extend([run().id()]);
        let strict = [Demand::green_and_release(2)];
        let new = Err((Rule::Threshold, "lists something new"));
        check_run(&strict, |case| (going_back(case), list(case, evil)).1, new);
        check_run(&strict, |case| (going_back(case), list(case, run().id())).1, Ok(&["ada"]));
        check_run(
            &strict,
            |case| {
                going_back(case);
                case.place.live = Some((evil, ImageId([5; 32])));
                list(case, evil);
            },
            Ok(&["ada"]),
        );
        let ci = |case: &mut Case| (case.signers, case.statements) = (vec![CI], green());
        check_run(&[Demand { release: 0, green: 1, standing: false }], |case| (ci(case), list(case, evil)).1, new);
        let full = |case: &mut Case| (case.signers, case.statements) = (vec![1, 2], green());
        check_run(&strict, |case| (full(case), list(case, evil)).1, Ok(&["ada", "bob"]));
        let mut case = Case::new(Action::Run(run()));
        (case.environment.break_glass, case.order.break_glass) = (Some(1), Some("why".into()));
        list(&mut case, evil);
        compare(case.run(), new);
    }

    #[test]
    fn what_is_revoked_is_not_started_again() {
        for (action, refused) in [
            (Action::Start { services: vec![] }, true),
            (Action::Restart { services: vec![] }, true),
            (Action::Stop { services: vec![] }, false),
            (Action::Remove { volumes: false }, false),
        ] {
            let mut case = Case::new(action);
            case.place.live = Some((RunId([1; 32]), green::tests::IMAGE));
            case.revoked.images.extend([green::tests::IMAGE]);
            let found = case.run().map_err(|refusal| refusal.rule);
            assert_eq!(found.is_err(), refused, "{found:?}");
        }
    }

    #[test]
    fn secrets_are_nothing_to_go_back_to() {
        let name = || "token".parse::<SecretName>().unwrap();
        let mut service = service();
        service.secrets.insert(name());
        let run = Run { services: vec![service], ..run() };
        let case = |known: Option<u8>| {
            let mut case = Case::new(Action::Run(run.clone()));
            case.environment.accepts = vec![Demand::green_and_release(2)];
            case.place.fallback.extend([run.id()]);
            case.place.secrets.extend(known.map(|byte| (name(), SecretDigest([byte; 32]))));
            at(&mut case, |target| target.secrets.extend([(name(), SecretDigest([7; 32]))]));
            case.run()
        };
        compare(case(Some(7)), Ok(&["ada"]));
        compare(case(Some(8)), Err((Rule::Threshold, "green and 2 release keys")));
        compare(case(None), Err((Rule::Threshold, "green and 2 release keys")));
    }

    #[test]
    fn a_standing_order_covers_no_new_secrets() {
        let name = || "token".parse::<SecretName>().unwrap();
        let mut service = service();
        service.secrets.insert(name());
        let run = Run { services: vec![service.clone()], ..run() };
        let case = |known: Option<u8>| {
            let mut case = Case::new(Action::Run(run.clone()));
            case.environment.accepts = vec![Demand { release: 0, green: 1, standing: true }];
            (case.signers, case.statements) = (vec![CI], green());
            let standing = StandingOrder {
                format: 1,
                fleet: "acme".parse().unwrap(),
                environment: "staging".parse().unwrap(),
                app: "notes".parse().unwrap(),
                nodes: BTreeSet::new(),
                services: vec![service.clone()],
                issued: NOW,
                not_after: NOW.plus_s(3600),
                uses_max: 2,
            };
            case.standing = Some((standing, vec![1]));
            case.place.secrets.extend(known.map(|byte| (name(), SecretDigest([byte; 32]))));
            at(&mut case, |target| target.secrets.extend([(name(), SecretDigest([7; 32]))]));
            case.run()
        };
        compare(case(Some(7)), Ok(&["ci"]));
        compare(case(Some(8)), Err((Rule::Standing, "no secrets other than")));
        compare(case(None), Err((Rule::Standing, "no secrets other than")));
    }

    #[test]
    fn breaking_glass() {
        let check = |allowed: Option<u32>, signers: &[u8], expected: Expected<'_>| {
            check_run(
                &[Demand::green_and_release(1)],
                |case| {
                    case.environment.break_glass = allowed;
                    case.order.break_glass = Some("CI is down and so are we".into());
                    case.signers = signers.to_vec();
                },
                expected,
            );
        };
        check(Some(2), &[1, 2], Ok(&["ada", "bob"]));
        check(Some(2), &[1], Err((Rule::BreakGlass, "2 distinct release keys to break glass")));
        check(Some(2), &[1, CI], Err((Rule::BreakGlass, "2 distinct release keys")));
        check(None, &[1, 2, 5], Err((Rule::BreakGlass, "allows no breaking of glass")));
        let mut case = Case::new(Action::Run(run()));
        case.environment.break_glass = Some(1);
        case.order.break_glass = Some("why".into());
        case.place.fallback.insert(run().id());
        assert_eq!(case.run().unwrap().grounds, Grounds::BreakGlass, "said is said");
    }

    #[test]
    fn what_was_revoked() {
        check_run(
            &[Demand::release(1)],
            |case| case.revoked.images.extend([green::tests::IMAGE]),
            Err((Rule::Revoked, "image 070707")),
        );
        let id = OrderId::of(&order(Action::Run(run())).to_bytes());
        check_run(&[Demand::release(1)], |case| case.revoked.orders.extend([id]), Err((Rule::Revoked, "order")));
        check_run(&[Demand::release(1)], |case| case.revoked.orders.extend([OrderId([1; 32])]), Ok(&["ada"]));
        let mut case = Case::new(look());
        case.revoked.images.insert(ImageId([8; 32]));
        compare(case.run(), Err((Rule::Revoked, "image 080808")));
    }

    #[test]
    fn nothing_new_starts_where_nothing_is_heard() {
        let heartbeat = |age: i64, policy| {
            Some(Heartbeat { format: 1, fleet: "acme".parse().unwrap(), issued: NOW.plus_s(-age), policy })
        };
        let demand = [Demand::release(1)];
        let stale = Err((Rule::Stale, "demands a heartbeat every 3600 seconds"));
        let period = |case: &mut Case| case.environment.heartbeat_s = Some(3600);
        check_run(&demand, period, Err((Rule::Stale, "heard one never")));
        check_run(&demand, |case| (period(case), case.heartbeat = heartbeat(3600, 1)).1, Ok(&["ada"]));
        check_run(&demand, |case| (period(case), case.heartbeat = heartbeat(3601, 1)).1, stale);
        check_run(&demand, |case| case.heartbeat = heartbeat(0, 2), Err((Rule::Stale, "policy of version 2")));
        check_run(&demand, |case| case.order.policy = 2, Err((Rule::Stale, "this node has version 1")));
        check_run(&demand, |case| case.order.policy = 0, Ok(&["ada"]));
        // What runs goes on, and can be stopped and started again.
        check(|case| (period(case), case.order.policy = 2).1, Ok(&["ada"]));
        for (action, expected) in [
            (Action::Restart { services: vec![] }, Ok(&["ada"][..])),
            (Action::Remove { volumes: false }, Ok(&["ada"])),
            (Action::Start { services: vec![] }, Err((Rule::Stale, "heartbeat"))),
            (look(), Err((Rule::Stale, "heartbeat"))),
        ] {
            let mut case = Case::new(action);
            period(&mut case);
            compare(case.run(), expected);
        }
    }

    #[test]
    fn what_a_node_must_offer() {
        let demand = [Demand::release(1)];
        let requires =
            |case: &mut Case| case.environment.requires = [Isolation::FsVerity, Isolation::PrivatePids].into();
        check_run(&demand, requires, Err((Rule::Isolation, "demands fs-verity, private-pids")));
        check_run(
            &demand,
            |case| {
                requires(case);
                case.offers.insert(Isolation::PrivatePids);
            },
            Err((Rule::Isolation, "demands fs-verity of")),
        );
        check_run(
            &demand,
            |case| {
                requires(case);
                case.offers = [Isolation::FsVerity, Isolation::PrivatePids, Isolation::LimitCpu].into();
            },
            Ok(&["ada"]),
        );
        check(requires, Ok(&["ada"]));
    }

    #[test]
    fn replays_and_forks() {
        check(|case| case.place.counter = 5, Err((Rule::Counter, "number 5")));
        check(|case| case.place.counter = 6, Err((Rule::Counter, "last accepted was 6")));
        check(|case| case.place.counter = u64::MAX, Err((Rule::Counter, "number 5")));
        check(|case| case.place.previous = Some(OrderId([6; 32])), Err((Rule::Previous, "follows order 0505")));
        check(|case| case.place.previous = None, Err((Rule::Previous, "was none")));
        check(|case| case.boot = BootId([8; 32]), Err((Rule::Boot, "earlier boot")));
    }

    /// The order's own target, changed.
    fn at(case: &mut Case, change: impl FnOnce(&mut Target)) {
        change(case.order.targets.values_mut().next().unwrap());
    }

    #[test]
    fn counters_cannot_be_used_up() {
        for (counter, words) in [(u64::MAX, "number"), (5 + FLOOR_STEP_MAX + 1, "number")] {
            check(|case| at(case, |target| target.counter = counter), Err((Rule::Counter, words)));
        }
        check(
            |case| at(case, |target| target.floor = Some(4 + FLOOR_STEP_MAX + 1)),
            Err((Rule::Counter, "more than 1000000")),
        );
        check(|case| at(case, |target| target.floor = Some(u64::MAX)), Err((Rule::Counter, "more than 1000000")));
        let lifted = 4 + FLOOR_STEP_MAX;
        check(|case| at(case, |target| (target.floor, target.counter) = (Some(lifted), lifted + 1)), Ok(&["ada"]));
        // At the very end, which nobody reaches.
        check(
            |case| {
                case.place.counter = u64::MAX;
                at(case, |target| target.counter = 0);
            },
            Err((Rule::Malformed, "counters start at 1")),
        );
    }

    #[test]
    fn a_node_that_was_put_back() {
        let ahead = |case: Case| {
            let refusal = case.run().unwrap_err();
            (refusal.rule, refusal.ahead)
        };
        let case = |change: fn(&mut Case)| {
            let mut case = Case::new(Action::Start { services: vec![] });
            change(&mut case);
            case
        };
        // An order beyond what it knows is proof, whatever boot it was meant for.
        assert_eq!(ahead(case(|case| case.place.counter = 3)), (Rule::Restored, Some(4)));
        assert_eq!(
            ahead(case(|case| {
                case.place.counter = 3;
                case.boot = BootId([8; 32]);
            })),
            (Rule::Restored, Some(4))
        );
        assert_eq!(
            ahead(case(|case| at(case, |t| t.counter = 4 + FLOOR_STEP_MAX + 1))),
            (Rule::Restored, Some(4 + FLOOR_STEP_MAX))
        );
        // One that is not signed well enough proves nothing.
        assert_eq!(
            ahead(case(|case| {
                case.place.counter = 3;
                case.signers = vec![CI];
            })),
            (Rule::Threshold, None)
        );
        // From then on only an order that knows of it is accepted.
        assert_eq!(ahead(case(|case| case.place.seen = 7)), (Rule::Restored, None));
        let seen = |case: &mut Case, floor: u64, counter: u64| {
            case.place.seen = 7;
            at(case, |t| (t.floor, t.counter) = (Some(floor), counter));
        };
        check_start(
            |case| seen(case, 6, 7),
            Err((Rule::Restored, "knows of 4 orders for `notes`, and 7 were accepted")),
        );
        check_start(|case| seen(case, 7, 8), Ok(&["ada"]));
        check_start(|case| seen(case, 7, 7), Err((Rule::Counter, "last accepted was 7")));
        check_start(|case| seen(case, 7, 9), Err((Rule::Restored, "8 were accepted")));
        check_start(|case| case.place.seen = 4, Ok(&["ada"]));
        // A floor below where it stands lifts nothing.
        check_start(|case| at(case, |t| t.floor = Some(2)), Ok(&["ada"]));
        // To stop is not kept from anybody by it.
        check(|case| case.place.seen = 7, Ok(&["ada"]));
    }

    #[test]
    fn times() {
        check(|case| case.now = NOW.plus_s(600), Err((Rule::Expired, "expired at")));
        check(|case| case.order.issued = NOW.plus_s(CLOCK_SKEW_S + 1), Err((Rule::Expired, "issued at")));
        check(|case| case.minimum_time = NOW.plus_s(1), Err((Rule::Clock, "has known")));
        // A year back, and ten years forward.
        check(|case| case.now = NOW.plus_s(-31_536_000), Err((Rule::Clock, "has known")));
        check(|case| case.now = NOW.plus_s(315_360_000), Err((Rule::Expired, "expired at")));
    }

    #[test]
    fn a_key_that_must_verify_its_user() {
        let sk = TestKey::security_key(6);
        let mut policy = full_policy(&Environment::accepting(Demand::release(1)));
        let entry = Key { key: sk.public.to_openssh(), roles: [Role::Release].into(), verify_user: true };
        policy.keys.insert("dora".parse().unwrap(), entry);
        let bytes = order(Action::Stop { services: vec![] }).to_bytes();
        let sign = |flags| vec![sk.sign_as_security_key(NAMESPACE, &bytes, flags)];
        let check = |signatures: &[String]| {
            let presented = Presented { bytes: &bytes, signatures, statements: &[], standing: None };
            Signed::of(&presented, &policy, &"staging".parse().unwrap())
                .map(|signed| signed.names())
                .map_err(|refusal| refusal.message)
        };
        assert_eq!(check(&sign(5)).unwrap(), ["dora"]);
        assert!(check(&sign(1)).unwrap_err().contains("asked no PIN"));
        assert!(check(&sign(4)).unwrap_err().contains("without touching"));
    }
}
