/* A program of the time of tests/abi/mistral.h, which is compiled against that header for ever: program MODEL */
#include <mistral.h>

#include <stdio.h>
#include <string.h>

#define CHECK(condition)                                               \
  do {                                                                 \
    if (!(condition)) {                                                \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);  \
      return 1;                                                        \
    }                                                                  \
  } while (0)

typedef struct {
  int calls, probabilities, finish;
  char text[256];
  size_t text_len;
} seen;

static int32_t on_progress(void *user_data, const mistral_progress *progress) {
  ++*(int *)user_data;
  return progress->struct_size < sizeof *progress || progress->done > progress->total || !progress->phase[0];
}

static int32_t on_event(void *user_data, const mistral_event *event) {
  seen *state = user_data;
  if (event->struct_size < sizeof *event || state->text_len + event->text_len > sizeof state->text) return 1;
  memcpy(state->text + state->text_len, event->text, event->text_len);
  state->text_len += event->text_len;
  state->calls++;
  state->finish = event->finish_reason;
  if (event->top_logprobs_len == 2 && event->top_logprobs[0].logprob == event->logprob) state->probabilities++;
  return 0;
}

static int32_t on_chunk(void *user_data, const char *chunk, size_t len) {
  ++*(int *)user_data;
  return chunk[0] != '{' || chunk[len] != 0;
}

int main(int argc, char **argv) {
  const char *options = "{\"max_tokens\": 6, \"ignore_eos\": true, \"logprobs\": 2}";
  const char *request = "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"max_tokens\": 3, \"stream\": true}";
  const mistral_event *event = NULL;
  mistral_model *model = NULL;
  mistral_session *session = NULL;
  mistral_generation *generation = NULL;
  mistral_cancel *cancel = NULL;
  mistral_buf *buf = NULL;
  char message[256];
  uint32_t tokens[8];
  float logits[260];
  size_t count = 0;
  seen state = {0};
  int calls = 0;

  CHECK(argc == 2 && mistral_version()[0] - '0' == MISTRAL_VERSION_MAJOR);
  CHECK(mistral_model_open("/nowhere", 8, NULL, 0, NULL, NULL, NULL, &model) == MISTRAL_E_IO && model == NULL);
  CHECK(mistral_last_error(message, sizeof message) > 0 && strstr(message, "/nowhere") != NULL);
  CHECK(strcmp(mistral_status_name(MISTRAL_E_IO), "MISTRAL_E_IO") == 0);
  CHECK(mistral_model_open(argv[1], strlen(argv[1]), NULL, 0, NULL, on_progress, &calls, &model) == MISTRAL_OK);
  CHECK(calls > 0 && mistral_model_info(model, &buf) == MISTRAL_OK && mistral_buf_len(buf) > 2);
  CHECK(mistral_buf_free(buf) == MISTRAL_OK && mistral_buf_free(buf) == MISTRAL_E_HANDLE);
  CHECK(mistral_encode(model, "hello", 5, NULL, 0, tokens, 1, &count) == MISTRAL_E_BUFFER_TOO_SMALL && count == 3);
  CHECK(mistral_encode(model, "hello", 5, NULL, 0, tokens, 8, &count) == MISTRAL_OK && count == 3);
  CHECK(mistral_decode(model, tokens, count, NULL, 0, &buf) == MISTRAL_OK);
  CHECK(strcmp(mistral_buf_data(buf), "hello") == 0 && mistral_buf_free(buf) == MISTRAL_OK);
  CHECK(mistral_cancel_new(&cancel) == MISTRAL_OK);
  CHECK(mistral_session_new(model, "{\"context\": 32}", 15, &session) == MISTRAL_OK);
  CHECK(mistral_generate(session, tokens, count, options, strlen(options), cancel, on_event, &state) == MISTRAL_OK);
  CHECK(state.calls == 6 && state.probabilities == 6 && state.finish == MISTRAL_FINISH_LENGTH);
  CHECK(mistral_session_reset(session) == MISTRAL_OK);
  CHECK(mistral_prefill(session, tokens, count, NULL, on_progress, &calls) == MISTRAL_OK);
  CHECK(mistral_logits(session, logits, 260, &count) == MISTRAL_OK && count == 260);
  CHECK(mistral_generation_new(session, NULL, 0, options, strlen(options), NULL, NULL, NULL, &generation) == MISTRAL_OK);
  CHECK(mistral_generation_next(generation, &event) == MISTRAL_OK && event->finish_reason == MISTRAL_FINISH_NONE);
  CHECK(mistral_generation_free(generation) == MISTRAL_OK);
  calls = 0;
  CHECK(mistral_chat(model, request, strlen(request), NULL, on_chunk, &calls, &buf) == MISTRAL_OK && calls > 0);
  CHECK(mistral_buf_free(buf) == MISTRAL_OK);
  CHECK(mistral_cancel_trigger(cancel) == MISTRAL_OK);
  CHECK(mistral_generate(session, NULL, 0, options, strlen(options), cancel, on_event, &state) == MISTRAL_E_CANCELLED);
  CHECK(mistral_cancel_free(cancel) == MISTRAL_OK && mistral_session_free(session) == MISTRAL_OK);
  CHECK(mistral_model_free(model) == MISTRAL_OK);
  return 0;
}
