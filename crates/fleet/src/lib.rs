//! Outbound effects: SSH client, agent client, push, signing with keys people have.
