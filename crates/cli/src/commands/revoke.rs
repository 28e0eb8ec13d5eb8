//! `bulkhead revoke`.

use crate::{
    Context,
    commands::policy::{bring_notice, one_of},
    error::{Error, Result},
    output::printable,
    session::{Session, now, sign_error},
};
use bulkhead_core::{
    ImageId, OrderId, StatementId,
    notice::{REVOCATION_NAMESPACE, Revocation, Revoked},
};
use bulkhead_wire::Paper;
use clap::Args;

/// Keeps images, orders or statements from starting anything any more, on every node
///
/// Any one release key is enough; a green key may revoke images and statements. What
/// runs goes on running: stop it, or deploy another. What is revoked stays so.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Images to revoke, by their whole id (`bulkhead releases -o json`).
    #[arg(long = "image", value_name = "IMAGE")]
    pub images: Vec<ImageId>,

    /// Orders and standing orders to revoke.
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

/// Revokes.
///
/// # Errors
/// Nobody agreed, no key is at hand, or a node did not take it.
pub async fn run(context: &Context, args: &RevokeArgs) -> Result<()> {
    context.ui.must_be_able_to_ask(args.yes)?;
    let session = Session::open(context)?;
    let revoked = Revoked {
        images: args.images.iter().copied().collect(),
        orders: args.orders.iter().copied().collect(),
        statements: args.statements.iter().copied().collect(),
    };
    let count = revoked.len();
    let fleet = session.files.fleet.fleet.clone();
    let revocation = Revocation { format: 1, fleet, issued: now(), reason: args.reason.clone(), revoked };
    revocation.check().map_err(|what| Error::usage(format!("this would be refused: {what}")))?;
    let hand = session.hand().await?;
    let signer = one_of(&hand)?;
    context.ui.preview(|_| format!("revoke {count} on every node, for good: {}\n", printable(&args.reason)))?;
    context.ui.confirm("Revoke?", args.yes).await?;
    let bytes = revocation.to_bytes();
    let signature = signer.sign(REVOCATION_NAMESPACE, &bytes).await.map_err(|error| sign_error(&error))?;
    bring_notice(context, &session, Paper::Revocation, bytes, vec![signature], "revoked").await
}
