//! Sequences of calls of the C interface, legal and not: an input is a program for it. Whatever it says, each call answers with a status of the header, and never
//! with that of a bug. Handles may be stale, freed twice, of another kind, or made up.

use std::ffi::{c_char, c_void};
use std::ptr::{null, null_mut};

pub type Handle = *mut c_void;

// SAFETY: these are the declarations of mistral.h. They are safe to call here: handles are checked by the library, and the other pointers
// that this program passes are right.
unsafe extern "C" {
    safe fn mistral_last_error(message: *mut c_char, capacity: usize) -> usize;
    safe fn mistral_last_error_json(out: *mut Handle) -> i32;
    safe fn mistral_buf_len(buf: Handle) -> usize;
    safe fn mistral_buf_data(buf: Handle) -> *const c_char;
    safe fn mistral_buf_free(buf: Handle) -> i32;
    safe fn mistral_cancel_new(out: *mut Handle) -> i32;
    safe fn mistral_cancel_trigger(cancel: Handle) -> i32;
    safe fn mistral_cancel_reset(cancel: Handle) -> i32;
    safe fn mistral_cancel_free(cancel: Handle) -> i32;
    safe fn mistral_model_info(model: Handle, out: *mut Handle) -> i32;
    safe fn mistral_model_free(model: Handle) -> i32;
    safe fn mistral_encode(
        m: Handle,
        text: *const u8,
        len: usize,
        o: *const u8,
        n: usize,
        to: *mut u32,
        room: usize,
        count: *mut usize,
    ) -> i32;
    safe fn mistral_decode(
        m: Handle,
        tokens: *const u32,
        count: usize,
        o: *const u8,
        n: usize,
        out: *mut Handle,
    ) -> i32;
    safe fn mistral_session_new(model: Handle, options: *const u8, len: usize, out: *mut Handle) -> i32;
    safe fn mistral_session_fork(session: Handle, out: *mut Handle) -> i32;
    safe fn mistral_session_reset(session: Handle) -> i32;
    safe fn mistral_session_trim(session: Handle, count: usize) -> i32;
    safe fn mistral_session_stats(session: Handle, out: *mut Handle) -> i32;
    safe fn mistral_session_free(session: Handle) -> i32;
    safe fn mistral_session_save(
        s: Handle,
        o: *const u8,
        n: usize,
        c: Handle,
        p: *const c_void,
        u: *mut c_void,
        out: *mut Handle,
    ) -> i32;
    safe fn mistral_session_load(
        m: Handle,
        blob: *const c_void,
        len: usize,
        o: *const u8,
        n: usize,
        c: Handle,
        p: *const c_void,
        u: *mut c_void,
        out: *mut Handle,
    ) -> i32;
    safe fn mistral_prefill(
        s: Handle,
        tokens: *const u32,
        count: usize,
        c: Handle,
        p: *const c_void,
        u: *mut c_void,
    ) -> i32;
    safe fn mistral_logits(s: Handle, logits: *mut f32, capacity: usize, count: *mut usize) -> i32;
    safe fn mistral_sample(
        s: Handle,
        o: *const u8,
        n: usize,
        c: Handle,
        token: *mut u32,
        logprob: *mut f32,
    ) -> i32;
    safe fn mistral_generate(
        s: Handle,
        tokens: *const u32,
        count: usize,
        o: *const u8,
        n: usize,
        c: Handle,
        f: *const c_void,
        u: *mut c_void,
    ) -> i32;
    safe fn mistral_generation_new(
        s: Handle,
        tokens: *const u32,
        count: usize,
        o: *const u8,
        n: usize,
        c: Handle,
        p: *const c_void,
        u: *mut c_void,
        out: *mut Handle,
    ) -> i32;
    safe fn mistral_generation_next(generation: Handle, event: *mut *const c_void) -> i32;
    safe fn mistral_generation_free(generation: Handle) -> i32;
    safe fn mistral_session_chat(
        s: Handle,
        request: *const u8,
        len: usize,
        c: Handle,
        f: *const c_void,
        u: *mut c_void,
        out: *mut Handle,
    ) -> i32;
    safe fn mistral_chat_encode(
        m: Handle,
        request: *const u8,
        len: usize,
        o: *const u8,
        n: usize,
        to: *mut u32,
        room: usize,
        count: *mut usize,
    ) -> i32;
    safe fn mistral_chat_parse(
        m: Handle,
        text: *const u8,
        len: usize,
        tokens: *const u32,
        count: usize,
        o: *const u8,
        n: usize,
        out: *mut Handle,
    ) -> i32;
    safe fn mistral_embed(
        m: Handle,
        tokens: *const u32,
        count: usize,
        o: *const u8,
        n: usize,
        c: Handle,
        to: *mut f32,
        room: usize,
        out: *mut usize,
    ) -> i32;
}

const OK: i32 = 0;
const HANDLE: i32 = 4;
/// The last number of the header that is no bug.
const LAST: i32 = 19;

/// Places for handles; more are not kept.
const PLACES: usize = 6;
/// Calls of one program.
const CALLS: usize = 48;

const OPTIONS: [&str; 12] = [
    "",
    "{}",
    "{\"max_tokens\": 3}",
    "{\"max_tokens\": 4, \"temperature\": 1.5, \"seed\": 7, \"top_k\": 9}",
    "{\"max_tokens\": 5, \"stop\": [\"a\", \"\"], \"logprobs\": 2}",
    "{\"max_tokens\": 6, \"json_schema\": {\"type\": \"integer\"}}",
    "{\"context\": 16}",
    "{\"context\": 16, \"cache_type\": \"f32\", \"max_prompt_tokens\": 5}",
    "{\"context\": 18446744073709551615}",
    "{\"bos\": true, \"special\": true}",
    "{\"key\": \"00112233445566778899aabbccddeeff\"}",
    "{\"temperature\": null, ",
];

const REQUESTS: [&str; 4] = [
    "{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}], \"max_tokens\": 3}",
    "{\"messages\": [{\"role\": \"user\", \"content\": \"he\"}], \"max_tokens\": 2, \"n\": 2, \"logprobs\": true}",
    "{\"messages\": [{\"role\": \"system\", \"content\": \"\"}], \"max_tokens\": 9}",
    "{\"messages\": 1",
];

/// The state of a program.
struct Machine<'a> {
    input: &'a [u8],
    model: Handle,
    /// Handles of every kind, what was freed among them.
    sessions: [Handle; PLACES],
    generations: [Handle; PLACES],
    cancels: [Handle; PLACES],
    buffers: [Handle; PLACES],
    good: bool,
}

impl Machine<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.input.split_first() else { return 0 };
        self.input = rest;
        *first
    }

    fn place(&mut self) -> usize {
        usize::from(self.byte()) % PLACES
    }

    fn options(&mut self) -> &'static str {
        OPTIONS[usize::from(self.byte()) % OPTIONS.len()]
    }

    fn tokens(&mut self) -> Vec<u32> {
        let count = usize::from(self.byte() % 8);
        // One beyond the vocabulary now and then.
        (0..count).map(|_| u32::from(self.byte()) + 5).collect()
    }

    /// Mostly a session; at times something else.
    fn session(&mut self) -> Handle {
        let (kind, place) = (self.byte(), self.place());
        match kind {
            250 => null_mut(),
            251 => self.generations[place],
            252 => self.model,
            253 => (usize::from(self.byte()) << 4 | 1) as Handle,
            _ => self.sessions[place],
        }
    }

    fn cancel(&mut self) -> Handle {
        let byte = self.byte();
        if byte < 200 { null_mut() } else { self.cancels[usize::from(byte) % PLACES] }
    }

    fn check(&mut self, status: i32) -> i32 {
        if !(OK..=LAST).contains(&status) {
            let mut message = [0 as c_char; 400];
            mistral_last_error(message.as_mut_ptr(), message.len());
            let text: String =
                message.iter().take_while(|c| **c != 0).map(|c| char::from(*c as u8)).collect();
            panic!("status {status}: {text}");
        }
        self.good |= status == OK;
        status
    }

    /// Calls `make` and keeps what it made.
    fn make(
        &mut self,
        place: usize,
        kind: fn(&mut Self) -> &mut [Handle; PLACES],
        make: impl FnOnce(*mut Handle) -> i32,
    ) {
        let mut made = null_mut();
        let status = make(&mut made);
        if self.check(status) == OK {
            // What was there is forgotten here, so it is freed; it may have been before.
            let old = std::mem::replace(&mut kind(self)[place], made);
            self.free(old);
        } else {
            assert!(made.is_null(), "a call that failed wrote its result");
        }
    }

    /// A handle is of one kind.
    fn free(&mut self, handle: Handle) {
        if handle.is_null() {
            return;
        }
        let functions =
            [mistral_session_free, mistral_generation_free, mistral_cancel_free, mistral_buf_free];
        let freed = functions.iter().filter(|free| free(handle) == OK).count();
        assert!(freed <= 1, "freed twice");
        assert!(functions.iter().all(|free| free(handle) == HANDLE), "a handle that was freed");
    }

    fn step(&mut self) {
        let (operation, place) = (self.byte() % 25, self.place());
        let model = self.model;
        let none = null_mut();
        match operation {
            0 => {
                let o = self.options();
                self.make(
                    place,
                    |m| &mut m.sessions,
                    |out| mistral_session_new(model, o.as_ptr(), o.len(), out),
                );
            }
            1 => {
                let session = self.session();
                self.make(place, |m| &mut m.sessions, |out| mistral_session_fork(session, out));
            }
            2 => {
                let status = mistral_session_reset(self.session());
                self.check(status);
            }
            3 => {
                let (session, count) = (self.session(), self.byte());
                // A count that went wrong in the host.
                let count = if count == 255 { usize::MAX } else { usize::from(count % 20) };
                let status = mistral_session_trim(session, count);
                self.check(status);
            }
            4 => {
                let session = self.session();
                self.make(place, |m| &mut m.buffers, |out| mistral_session_stats(session, out));
            }
            5 => {
                let handle = self.sessions[place];
                self.free(handle);
            }
            6 => {
                let (session, o, cancel) = (self.session(), self.options(), self.cancel());
                self.make(
                    place,
                    |m| &mut m.buffers,
                    |out| mistral_session_save(session, o.as_ptr(), o.len(), cancel, null(), none, out),
                );
            }
            7 => {
                let (buffer, o, cancel) = (self.place(), self.options(), self.cancel());
                let buffer = self.buffers[buffer];
                let (data, len) = (mistral_buf_data(buffer), mistral_buf_len(buffer));
                self.make(
                    place,
                    |m| &mut m.sessions,
                    |out| {
                        mistral_session_load(
                            model,
                            data.cast(),
                            len,
                            o.as_ptr(),
                            o.len(),
                            cancel,
                            null(),
                            none,
                            out,
                        )
                    },
                );
            }
            8 | 9 => {
                let (session, tokens, cancel) = (self.session(), self.tokens(), self.cancel());
                let status = mistral_prefill(session, tokens.as_ptr(), tokens.len(), cancel, null(), none);
                self.check(status);
            }
            10 => {
                let (mut room, mut count) = ([0f32; 260], 0);
                let status = mistral_logits(self.session(), room.as_mut_ptr(), place * 52, &mut count);
                self.check(status);
            }
            11 | 12 => {
                let (session, o, cancel) = (self.session(), self.options(), self.cancel());
                let (mut token, mut logprob) = (0, 0.0);
                let status = mistral_sample(session, o.as_ptr(), o.len(), cancel, &mut token, &mut logprob);
                self.check(status);
            }
            13 => {
                let (session, tokens, o, cancel) =
                    (self.session(), self.tokens(), self.options(), self.cancel());
                let status = mistral_generate(
                    session,
                    tokens.as_ptr(),
                    tokens.len(),
                    o.as_ptr(),
                    o.len(),
                    cancel,
                    null(),
                    none,
                );
                self.check(status);
            }
            14 | 15 => {
                let (session, tokens, o, cancel) =
                    (self.session(), self.tokens(), self.options(), self.cancel());
                self.make(
                    place,
                    |m| &mut m.generations,
                    |out| {
                        mistral_generation_new(
                            session,
                            tokens.as_ptr(),
                            tokens.len(),
                            o.as_ptr(),
                            o.len(),
                            cancel,
                            null(),
                            none,
                            out,
                        )
                    },
                );
            }
            16 | 17 => {
                let mut event = null();
                let status = mistral_generation_next(self.generations[place], &mut event);
                self.check(status);
            }
            18 => {
                let handle = self.generations[place];
                self.free(handle);
            }
            19 => self.make(place, |m| &mut m.cancels, |out| mistral_cancel_new(out)),
            20 => {
                let trigger = self.byte().is_multiple_of(2);
                let cancel = self.cancels[place];
                let status =
                    if trigger { mistral_cancel_trigger(cancel) } else { mistral_cancel_reset(cancel) };
                self.check(status);
            }
            21 => {
                let (session, cancel) = (self.session(), self.cancel());
                let request = REQUESTS[usize::from(self.byte()) % REQUESTS.len()];
                self.make(
                    place,
                    |m| &mut m.buffers,
                    |out| {
                        mistral_session_chat(
                            session,
                            request.as_ptr(),
                            request.len(),
                            cancel,
                            null(),
                            none,
                            out,
                        )
                    },
                );
            }
            22 => {
                let (tokens, o) = (self.tokens(), self.options());
                self.make(
                    place,
                    |m| &mut m.buffers,
                    |out| mistral_decode(model, tokens.as_ptr(), tokens.len(), o.as_ptr(), o.len(), out),
                );
            }
            23 => self.text(),
            _ => self.make(place, |m| &mut m.buffers, |out| mistral_model_info(model, out)),
        }
    }

    /// What is done with text and without a session.
    fn text(&mut self) {
        let (o, room) = (self.options(), usize::from(self.byte() % 40));
        let text = REQUESTS[usize::from(self.byte()) % REQUESTS.len()];
        let (mut tokens, mut count) = ([0u32; 40], 0);
        let to = tokens.as_mut_ptr();
        let status =
            mistral_encode(self.model, text.as_ptr(), text.len(), o.as_ptr(), o.len(), to, room, &mut count);
        self.check(status);
        let status = mistral_chat_encode(
            self.model,
            text.as_ptr(),
            text.len(),
            o.as_ptr(),
            o.len(),
            to,
            room,
            &mut count,
        );
        self.check(status);
        let (mut vector, mut dim) = ([0f32; 40], 0);
        let vector = vector.as_mut_ptr();
        let status =
            mistral_embed(self.model, to, room, o.as_ptr(), o.len(), null_mut(), vector, room, &mut dim);
        self.check(status);
        let mut out = null_mut();
        let status = mistral_chat_parse(
            self.model,
            text.as_ptr(),
            text.len(),
            to,
            room % 2,
            o.as_ptr(),
            o.len(),
            &mut out,
        );
        self.check(status);
        self.free(out);
        let mut error = null_mut();
        let status = mistral_last_error_json(&mut error);
        self.check(status);
        self.free(error);
    }
}

/// Runs a program on a model, and frees what it made; whether a call succeeded.
pub fn run(model: Handle, input: &[u8]) -> bool {
    let nothing = [null_mut(); PLACES];
    let mut machine = Machine {
        input,
        model,
        sessions: nothing,
        generations: nothing,
        cancels: nothing,
        buffers: nothing,
        good: false,
    };
    for _ in 0..CALLS {
        if machine.input.is_empty() {
            break;
        }
        machine.step();
    }
    let all = [machine.generations, machine.sessions, machine.cancels, machine.buffers];
    all.into_iter().flatten().for_each(|handle| machine.free(handle));
    machine.good
}

/// Programs to begin with: some that make sense.
pub fn seeds() -> Vec<Vec<u8>> {
    vec![
        // new, prefill, sample, sample, fork, trim, save, load
        vec![
            0, 0, 6, 8, 0, 0, 0, 3, 9, 8, 7, 0, 11, 0, 0, 0, 2, 0, 11, 0, 0, 0, 2, 0, 1, 1, 0, 0, 3, 0, 0, 0,
            2, 6, 2, 0, 0, 1, 0, 7, 3, 2, 1, 0,
        ],
        // new, generation, next, next, free, generate
        vec![0, 0, 6, 14, 1, 0, 0, 2, 9, 8, 2, 0, 16, 1, 16, 1, 18, 1, 13, 0, 0, 0, 1, 9, 2, 0],
        // cancel, trigger, new, prefill with it, reset, chat
        vec![19, 0, 20, 0, 0, 0, 1, 0, 8, 0, 0, 1, 2, 9, 9, 204, 20, 0, 1, 21, 0, 0, 1, 0, 0],
        // a generation on a session that is freed, and used through a handle of another kind
        vec![0, 0, 6, 14, 0, 0, 0, 1, 9, 2, 0, 5, 0, 16, 0, 8, 0, 251, 0, 1, 9, 0, 18, 0, 18, 0],
        vec![23, 0, 2, 20, 0, 22, 0, 3, 1, 2, 3, 0, 24, 0],
    ]
}

/// Gives up the model of the programs.
pub fn free(model: Handle) {
    assert_eq!(mistral_model_free(model), OK);
}
