//! One module for each group of commands.

mod admin;
mod connect;
mod doctor;
mod explain;
mod life;
pub(crate) mod manual;
mod operator;
mod show;
mod super_node;

use crate::{Context, args::Command, failure::Result};

/// Runs a command in the runtime.
pub(crate) async fn run(command: Command, context: Context) -> Result {
    match command {
        Command::Operator(command) => operator::run(command, context).await,
        Command::Domain(command) => admin::domain(command, &context).await,
        Command::Token(command) => admin::token(command, &context).await,
        Command::Device(command) => admin::device(command, &context).await,
        Command::Node(command) => admin::node(command, &context).await,
        Command::Segment(command) => admin::segment(command, &context).await,
        Command::Super(command) => super_node::run(command, context).await,
        Command::Join(args) => life::join(args, context).await,
        Command::Leave => life::leave(context).await,
        Command::Up(args) => life::up(args, context).await,
        Command::Down => life::down(&context).await,
        Command::Status => show::status(&context).await,
        Command::Doctor(args) => doctor::run(args, &context).await,
        Command::Explain(args) => explain::run(&args, &context).await,
        Command::Devices(args) => show::devices(&args, &context).await,
        Command::Connect(args) => connect::run(args, &context).await,
        // Run without a runtime.
        Command::Demo(_) | Command::Bench(_) | Command::Completions(_) | Command::Man(_) => Ok(()),
    }
}
