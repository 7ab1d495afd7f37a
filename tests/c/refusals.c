/*
 * What makes other libraries abort, or loop, gets a status here: refusals MODEL. Prints nothing unless it fails. Each case names what it
 * does to libllama.
 */
#include "check.h"

#define VOCAB_SIZE 260
#define LEN(text) text, strlen(text)

static mistral_model *model;

static mistral_session *session_of(const char *options) {
  mistral_session *session = NULL;
  OK(mistral_session_new(model, LEN(options), &session));
  return session;
}

static int32_t on_event(void *user_data, const mistral_event *event) {
  (void)user_data;
  (void)event;
  return 0;
}

typedef struct { char text[512]; size_t len; } answer;

static int32_t on_answer(void *user_data, const mistral_event *event) {
  answer *so_far = user_data;
  CHECK(so_far->len + event->text_len < sizeof so_far->text);
  memcpy(so_far->text + so_far->len, event->text, event->text_len);
  so_far->len += event->text_len;
  return 0;
}

static mistral_status generate(mistral_session *session, const uint32_t *tokens, size_t count, const char *options) {
  return mistral_generate(session, tokens, count, LEN(options), NULL, on_event, NULL);
}

/* GGML_ASSERT(n_tokens_all <= cparams.n_batch): a prompt longer than a batch. Here only the context bounds it. */
static void long_prompts(const char *options) {
  static uint32_t tokens[5000];
  float embedding[32];
  size_t count = 0;
  mistral_session *session = session_of(options);
  OK(mistral_prefill(session, tokens, 4000, NULL, NULL, NULL));
  CHECK(mistral_prefill(session, tokens, 5000, NULL, NULL, NULL) == MISTRAL_E_CONTEXT_FULL);
  /* A count that was negative before it was converted (GHSA-7rxv-5jhh-j6xx): what it counts is not looked at. */
  CHECK(mistral_prefill(session, tokens, (size_t)-1, NULL, NULL, NULL) == MISTRAL_E_ARGUMENT);
  CHECK(mistral_prefill(session, tokens, (size_t)-1 / 8, NULL, NULL, NULL) == MISTRAL_E_CONTEXT_FULL);
  CHECK(generate(session, tokens, (size_t)-1 / 8, "{}") == MISTRAL_E_CONTEXT_FULL);
  CHECK(mistral_embed(model, tokens, (size_t)-1 / 8, NULL, 0, NULL, NULL, 0, &count) == MISTRAL_E_BUFFER_TOO_SMALL && count == 32);
  CHECK(mistral_embed(model, tokens, (size_t)-1 / 8, NULL, 0, NULL, embedding, 32, &count) == MISTRAL_E_LIMIT);
  OK(mistral_prefill(session, tokens, 96, NULL, NULL, NULL));
  /* A full context, which it shifts or answers with "failed to decode". */
  CHECK(mistral_prefill(session, tokens, 1, NULL, NULL, NULL) == MISTRAL_E_CONTEXT_FULL);
  CHECK(generate(session, tokens, 1, "{}") == MISTRAL_E_CONTEXT_FULL);
  OK(generate(session, NULL, 0, "{\"ignore_eos\": true}"));
  OK(mistral_session_reset(session));
  OK(mistral_prefill(session, tokens, 1, NULL, NULL, NULL));
  OK(mistral_session_free(session));
}

/* GGML_ASSERT(token < n_vocab), and negative tokens. */
static void tokens_that_are_none(void) {
  mistral_session *session = session_of("{\"context\": 16}");
  uint32_t wrong[] = {VOCAB_SIZE, 0x7fffffff, 0x80000000, 0xffffffff}, tokens[2] = {1, 1};
  mistral_buf *buf = NULL;
  float embedding[64];
  size_t i, count = 0;
  for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    tokens[1] = wrong[i];
    CHECK(mistral_prefill(session, tokens, 2, NULL, NULL, NULL) == MISTRAL_E_ARGUMENT);
    CHECK(generate(session, tokens, 2, "{}") == MISTRAL_E_ARGUMENT);
    CHECK(mistral_decode(model, tokens, 2, NULL, 0, &buf) == MISTRAL_E_ARGUMENT && buf == NULL);
    CHECK(mistral_embed(model, tokens, 2, NULL, 0, NULL, embedding, 64, &count) == MISTRAL_E_ARGUMENT && count == 0);
  }
  OK(mistral_session_free(session));
}

/* n_ctx = 2e9: "failed to allocate", or an abort in ggml. The model and its other sessions go on. */
static void contexts(void) {
  mistral_session *session = NULL;
  CHECK(mistral_session_new(model, LEN("{\"context\": 2000000000}"), &session) == MISTRAL_E_LIMIT);
  CHECK(mistral_session_new(model, LEN("{\"context\": 18446744073709551615}"), &session) == MISTRAL_E_LIMIT);
  CHECK(mistral_session_new(model, LEN("{\"context\": 1e9}"), &session) == MISTRAL_E_ARGUMENT);
  CHECK(mistral_session_new(model, LEN("{\"context\": 0}"), &session) == MISTRAL_E_ARGUMENT && session == NULL);
  OK(mistral_session_free(session_of("{}")));
}

/* No tokens: GGML_ASSERT(n_tokens > 0); logits that were not asked for: an abort in llama_get_logits_ith. */
static void nothing_yet(void) {
  mistral_session *session = session_of("{\"context\": 16}");
  float logits[VOCAB_SIZE];
  uint32_t token = 0;
  size_t count = 0;
  CHECK(mistral_logits(session, logits, VOCAB_SIZE, &count) == MISTRAL_E_ARGUMENT && count == 0);
  CHECK(mistral_prefill(session, &token, 0, NULL, NULL, NULL) == MISTRAL_E_ARGUMENT);
  CHECK(generate(session, NULL, 0, "{}") == MISTRAL_E_ARGUMENT);
  /* A position beyond the end, as of negative counts that were taken for large ones. */
  CHECK(mistral_session_trim(session, 1) == MISTRAL_E_ARGUMENT);
  CHECK(mistral_session_trim(session, (size_t)-1) == MISTRAL_E_ARGUMENT);
  CHECK(mistral_sample(session, NULL, 0, NULL, &token, NULL) == MISTRAL_E_ARGUMENT);
  OK(mistral_session_free(session));
}

/* State that is another model's, cut off or changed: read into the caches as it is. */
static void blobs(void) {
  mistral_session *session = session_of("{\"context\": 16}"), *loaded = NULL;
  const uint32_t tokens[3] = {1, 2, 3};
  mistral_buf *blob = NULL;
  char *copy;
  size_t len, at;
  OK(mistral_prefill(session, tokens, 3, NULL, NULL, NULL));
  OK(mistral_session_save(session, NULL, 0, NULL, NULL, NULL, &blob));
  len = mistral_buf_len(blob);
  copy = malloc(len);
  CHECK(copy != NULL);
  for (at = 0; at < len; at += 1 + len / 500) {
    memcpy(copy, mistral_buf_data(blob), len);
    CHECK(mistral_session_load(model, copy, at, NULL, 0, NULL, NULL, NULL, &loaded) != MISTRAL_OK);
    copy[at] ^= 1;
    CHECK(mistral_session_load(model, copy, len, NULL, 0, NULL, NULL, NULL, &loaded) != MISTRAL_OK && loaded == NULL);
  }
  OK(mistral_session_load(model, mistral_buf_data(blob), len, NULL, 0, NULL, NULL, NULL, &loaded));
  OK(mistral_session_free(loaded));
  OK(mistral_session_free(session));
  OK(mistral_buf_free(blob));
  free(copy);
}

/* Samplers: top_k of nothing, NaN from a temperature, a bias on a token that is none, all tokens forbidden. */
static void samplers(void) {
  static char all[VOCAB_SIZE * 16 + 64];
  mistral_session *session = session_of("{\"context\": 256}");
  const char *refused[] = {
      "{\"temperature\": 1e400}", "{\"temperature\": -1}", "{\"top_p\": -0.5}", "{\"min_p\": 2}", "{\"repetition_penalty\": 0}",
      "{\"logit_bias\": {\"260\": 1}}", "{\"logit_bias\": {\"-1\": 1}}", "{\"logprobs\": 1000000}", "{\"max_tokens\": 0}", "{\"top_k\": -1}",
  };
  const char *edges[] = {
      "{\"max_tokens\": 3, \"temperature\": 1e-30}", "{\"max_tokens\": 3, \"temperature\": 100}",
      "{\"max_tokens\": 3, \"temperature\": 1, \"top_k\": 4294967295}", "{\"max_tokens\": 3, \"temperature\": 1, \"top_p\": 0}",
      "{\"max_tokens\": 3, \"temperature\": 1, \"min_p\": 1}",
  };
  uint32_t token = 1;
  size_t i;
  char *at = all;
  for (i = 0; i < sizeof refused / sizeof *refused; i++) CHECK(generate(session, &token, 1, refused[i]) == MISTRAL_E_ARGUMENT);
  for (i = 0; i < sizeof edges / sizeof *edges; i++) OK(generate(session, &token, 1, edges[i]));
  at += sprintf(at, "{\"max_tokens\": 2, \"temperature\": 1, \"logit_bias\": {");
  for (i = 0; i < VOCAB_SIZE; i++) at += sprintf(at, "%s\"%d\": -100", i ? ", " : "", (int)i);
  strcpy(at, "}}");
  OK(generate(session, &token, 1, all));
  OK(mistral_session_free(session));
}

/* Grammars: one that does not parse, or that nothing obeys; "Unexpected empty grammar stack" after a token that is not of the grammar. */
static void grammars(void) {
  mistral_session *session = session_of("{\"context\": 256}");
  const char *refused[] = {
      "{\"regex\": \"(\"}", "{\"grammar\": \"start: nothing\"}", "{\"grammar\": \"\"}",
      "{\"json_schema\": {\"type\": \"no type\"}}", "{\"json_schema\": 7}", "{\"regex\": \"a\", \"json_object\": true}",
  };
  uint32_t token = 1;
  answer found = {0};
  size_t i;
  for (i = 0; i < sizeof refused / sizeof *refused; i++) {
    mistral_status status = generate(session, &token, 1, refused[i]);
    CHECK(status == MISTRAL_E_ARGUMENT || status == MISTRAL_E_UNSUPPORTED);
  }
  /* The tokens that the model and the bias want are not of the grammar, its end is forbidden: it ends where the grammar does. */
  OK(mistral_session_reset(session));
  OK(mistral_generate(session, &token, 1, LEN("{\"regex\": \"(ab)+c\", \"logit_bias\": {\"65\": 100, \"66\": -100}, \"ignore_eos\": true, \"max_tokens\": 40}"),
                      NULL, on_answer, &found));
  CHECK(strncmp(found.text, "ab", 2) == 0);
  /* A dead end from the first token on: nothing but the end of the answer obeys. */
  memset(&found, 0, sizeof found);
  CHECK(mistral_generate(session, &token, 1, LEN("{\"regex\": \"\", \"ignore_eos\": true, \"max_tokens\": 5}"), NULL, on_answer, &found) !=
        MISTRAL_E_INTERNAL);
  CHECK(found.len == 0);
  OK(mistral_session_reset(session));
  OK(generate(session, &token, 1, "{\"max_tokens\": 2}"));
  OK(mistral_session_free(session));
}

/* Requests: templates and messages that throw through its C interface. */
static void requests(void) {
  const char *cases[] = {
      "", "null", "[]", "{\"messages\": [{}]}", "{\"messages\": [{\"role\": \"nobody\", \"content\": \"x\"}]}",
      "{\"messages\": [{\"role\": \"user\", \"content\": 7}]}",
  };
  static char deep[200001];
  mistral_buf *response = NULL;
  size_t i;
  for (i = 0; i < sizeof cases / sizeof *cases; i++)
    CHECK(mistral_chat(model, LEN(cases[i]), NULL, NULL, NULL, &response) == MISTRAL_E_ARGUMENT && response == NULL);
  memset(deep, '[', sizeof deep - 1);
  CHECK(mistral_chat(model, LEN(deep), NULL, NULL, NULL, &response) == MISTRAL_E_ARGUMENT);
}

int main(int argc, char **argv) {
  char audited[4096];
  CHECK(argc == 2);
  CHECK(snprintf(audited, sizeof audited, "{\"context\": 4096, \"audit\": {\"path\": \"%s.log\", \"text\": true, \"key\": \"%032d\"}}",
                 argv[1], 0) < (int)sizeof audited);
  OK(mistral_model_open(LEN(argv[1]), NULL, 0, NULL, NULL, NULL, &model));
  long_prompts("{\"context\": 4096}");
  /* A log has nothing of them either. */
  long_prompts(audited);
  tokens_that_are_none();
  contexts();
  nothing_yet();
  blobs();
  samplers();
  grammars();
  requests();
  OK(mistral_model_free(model));
  return 0;
}
