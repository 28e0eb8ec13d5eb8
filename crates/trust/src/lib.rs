//! Keys, signatures, policy: exact bytes in, Verified<T> or a refusal out. No I/O.
