//! Pipelines: what one read brought is served in its order, neighbours that may run together do.

use bytes::Bytes;
use futures_lite::AsyncWriteExt;
use futures_util::future::join_all;

use super::command::{self, Kind};
use super::connection::Connection;
use super::dispatch::set_operation;
use super::execute;
use super::operation::{Operation, Outcome};
use super::reply::Reply;
use super::server::add;

/// Replies are sent when this many bytes are waiting.
const REPLY_BYTES: usize = 256 << 10;

impl Connection<'_> {
    /// Serves what one read brought. Neighbouring SETs begin together, so that they share a group commit.
    pub async fn serve_batch(&mut self, commands: Vec<Vec<Bytes>>, replies: &mut Vec<u8>) -> std::io::Result<bool> {
        let mut commands = commands.into_iter().peekable();
        while let Some(args) = commands.next() {
            add(&self.server.counters.commands);
            let spec = match command::find(&args) {
                Ok(spec) => spec,
                Err(reply) => {
                    add(&self.server.counters.errors);
                    reply.write(replies, self.version);
                    continue;
                }
            };
            if spec.kind == Kind::Set {
                let mut group = vec![args];
                while let Some(next) = commands.next_if(|next| is_set(next)) {
                    add(&self.server.counters.commands);
                    group.push(next);
                }
                for reply in self.set_group(&group).await {
                    self.count_and_write(&reply, replies);
                }
            } else {
                let reply = self.serve_command(spec.kind, &args).await;
                self.count_and_write(&reply, replies);
                if spec.kind == Kind::Quit {
                    return Ok(true);
                }
            }
            if replies.len() >= REPLY_BYTES {
                self.stream.write_all(replies).await?;
                replies.clear();
            }
        }
        Ok(false)
    }

    fn count_and_write(&self, reply: &Reply, replies: &mut Vec<u8>) {
        if matches!(reply, Reply::Error(_)) {
            add(&self.server.counters.errors);
        }
        reply.write(replies, self.version);
    }

    /// Starts all SETs, then sends on, in order, those that another host has to take.
    pub async fn set_group(&self, group: &[Vec<Bytes>]) -> Vec<Reply> {
        let operations: Vec<std::result::Result<Operation, Reply>> =
            group.iter().map(|args| set_operation(args)).collect();
        let started = operations.iter().map(|operation| async move {
            match operation {
                Ok(operation) => {
                    Some(execute::try_here(&self.server.host, &self.server.shard, operation.clone()).await)
                }
                Err(_) => None,
            }
        });
        let outcomes = join_all(started).await;
        let mut replies = Vec::with_capacity(group.len());
        for (operation, outcome) in operations.into_iter().zip(outcomes) {
            replies.push(match (operation, outcome) {
                (Err(reply), _) => reply,
                (Ok(_), Some(Ok(Some(Outcome::Written)))) => Reply::Simple("OK"),
                (Ok(operation), Some(Ok(_))) => {
                    let slot = operation.slot();
                    match self.run_operation(operation).await {
                        Ok(Outcome::Written) => Reply::Simple("OK"),
                        other => self.server.failure(slot, other),
                    }
                }
                (Ok(operation), Some(Err(cause))) => self.server.failure(operation.slot(), Err(cause)),
                (Ok(_), None) => Reply::Nil,
            });
        }
        replies
    }
}

fn is_set(args: &[Bytes]) -> bool {
    args[0].eq_ignore_ascii_case(b"set") && args.len() >= 3
}
