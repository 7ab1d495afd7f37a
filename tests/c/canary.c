/*
 * Where a conversation is left: canary MODEL AUDIT. Chats about a text that occurs nowhere else, in every way that the interface has, frees what it made, and
 * looks for the text, its tokens and the answer in all memory that this process can write (/proc/self/mem), in errors, in what the log is told and in the
 * audit file. The program itself knows the text only disguised. Linux.
 */
#define _GNU_SOURCE
#include "mistral.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define OK(call)                                                                                  \
  do {                                                                                            \
    mistral_status status_ = (call);                                                              \
    if (status_ != MISTRAL_OK) {                                                                  \
      char message_[512];                                                                         \
      mistral_last_error(message_, sizeof message_);                                              \
      fprintf(stderr, "line %d: %s: %s\n", __LINE__, mistral_status_name(status_), message_);     \
      exit(1);                                                                                    \
    }                                                                                             \
  } while (0)

#define CHECK(condition, ...)                                                                     \
  do {                                                                                            \
    if (!(condition)) {                                                                           \
      fprintf(stderr, "line %d: ", __LINE__);                                                     \
      fprintf(stderr, __VA_ARGS__);                                                               \
      fprintf(stderr, "\n");                                                                      \
      exit(1);                                                                                    \
    }                                                                                             \
  } while (0)

#define NONE NULL, 0
#define DISGUISE 0x5a
#define LONGEST 256

/* Something to look for, every byte changed. */
struct needle {
  const char *name;
  size_t len;
  unsigned char bytes[LONGEST];
};

static struct needle canary = {"the prompt", 0, {0}}, tokens = {"the tokens", 0, {0}}, answer = {"the answer", 0, {0}};

/* What is read while looking lies in memory of its own, which is not looked at. */
#define WINDOW ((size_t)1 << 20)
static unsigned char *window;
static size_t told;

static void disguise(struct needle *needle, const void *data, size_t len) {
  const volatile unsigned char *from = data;
  if (len > LONGEST) len = LONGEST;
  for (size_t i = 0; i < len; ++i) needle->bytes[i] = from[i] ^ DISGUISE;
  needle->len = len;
}

static void forget(void *data, size_t len) {
  volatile unsigned char *to = data;
  for (size_t i = 0; i < len; ++i) to[i] = 0;
}

/* How often `needle` is in `data`. */
static size_t occurrences(const struct needle *needle, const unsigned char *data, size_t len) {
  size_t found = 0;
  for (size_t at = 0; at + needle->len <= len; ++at) {
    size_t same = 0;
    while (same < needle->len && (data[at + same] ^ DISGUISE) == needle->bytes[same]) ++same;
    found += same == needle->len;
  }
  return found;
}

/* How often `needle` is in the memory of this process that can be written. `where` gets the last place. */
static size_t in_memory(const struct needle *needle, char *where, size_t room) {
  size_t found = 0;
  FILE *maps = fopen("/proc/self/maps", "r");
  int memory = open("/proc/self/mem", O_RDONLY);
  CHECK(maps && memory >= 0, "/proc/self cannot be read");
  char line[512];
  while (fgets(line, sizeof line, maps)) {
    unsigned long start, end;
    char permissions[5];
    if (sscanf(line, "%lx-%lx %4s", &start, &end, permissions) != 3 || permissions[0] != 'r' || permissions[1] != 'w')
      continue;
    if (start <= (uintptr_t)window && (uintptr_t)window < end) {
      /* Around it, should the system have put other memory into the same mapping. */
      CHECK(start == (uintptr_t)window && end == start + WINDOW, "the window is not alone");
      continue;
    }
    for (unsigned long at = start; at < end;) {
      size_t want = end - at < WINDOW ? end - at : WINDOW;
      ssize_t got = pread(memory, window, want, (off_t)at);
      if (got <= 0) break;
      size_t hits = occurrences(needle, window, (size_t)got);
      if (hits) snprintf(where, room, "%s", line);
      found += hits;
      if ((size_t)got < WINDOW) break;
      at += (size_t)got - (needle->len - 1);
    }
  }
  close(memory);
  fclose(maps);
  forget(window, WINDOW);
  return found;
}

static void absent(const char *when) {
  const struct needle *all[] = {&canary, &tokens, &answer};
  for (size_t i = 0; i < 3; ++i) {
    char where[512] = "";
    size_t found = in_memory(all[i], where, sizeof where);
    CHECK(found == 0, "%s: %s is in memory %zu times, the last at %s", when, all[i]->name, found, where);
  }
}

static void present(const struct needle *needle) {
  char where[512];
  CHECK(in_memory(needle, where, sizeof where) > 0, "%s is not found where it must be: the search does not work", needle->name);
}

static void log_line(void *user_data, int32_t level, const char *message, size_t len) {
  (void)user_data, (void)level;
  told += occurrences(&canary, (const unsigned char *)message, len);
}

/* The error of a call that failed says nothing of the text. */
static void refused(mistral_status status) {
  char message[4096];
  CHECK(status != MISTRAL_OK, "a call that must fail did not");
  mistral_last_error(message, sizeof message);
  CHECK(occurrences(&canary, (unsigned char *)message, strlen(message)) == 0, "the text is in an error");
  mistral_buf *json = NULL;
  OK(mistral_last_error_json(&json));
  CHECK(occurrences(&canary, (const unsigned char *)mistral_buf_data(json), mistral_buf_len(json)) == 0, "the text is in an error");
  OK(mistral_buf_free(json));
}

/* `before`, the text and `after`, in memory that `forget_text` gives back. */
static char *with_text(const char *before, const char *after) {
  size_t head = strlen(before), tail = strlen(after);
  char *whole = malloc(head + canary.len + tail + 1);
  CHECK(whole, "no memory");
  memcpy(whole, before, head);
  for (size_t i = 0; i < canary.len; ++i) whole[head + i] = (char)(canary.bytes[i] ^ DISGUISE);
  memcpy(whole + head + canary.len, after, tail + 1);
  return whole;
}

static void forget_text(char *text) {
  forget(text, strlen(text));
  free(text);
}

static int32_t on_chunk(void *user_data, const char *chunk, size_t len) {
  (void)user_data, (void)chunk, (void)len;
  return 0;
}

static int32_t on_event(void *user_data, const mistral_event *event) {
  (void)user_data, (void)event;
  return 0;
}

/* The answer, as the response has it. */
static void remember_answer(const char *response) {
  const char *start = strstr(response, "\"content\":\"");
  CHECK(start, "a response has no content");
  start += strlen("\"content\":\"");
  size_t len = 0;
  while (start[len] && !(start[len] == '"' && start[len - 1] != '\\')) ++len;
  CHECK(len >= 16, "an answer of %zu bytes tells little", len);
  disguise(&answer, start, len);
}

static void chats(const mistral_model *model, mistral_session *session) {
  char *request = with_text("{\"messages\": [{\"role\": \"user\", \"content\": \"\\u00e9 ", "\"}], \"max_tokens\": 40}");
  mistral_buf *response = NULL, *other = NULL;
  OK(mistral_session_chat(session, request, strlen(request), NULL, NULL, NULL, &response));
  OK(mistral_chat(model, request, strlen(request), NULL, NULL, NULL, &other));
  OK(mistral_buf_free(other));
  remember_answer(mistral_buf_data(response));
  forget_text(request);
  present(&answer);
  OK(mistral_buf_free(response));
  request = with_text("{\"stream\": true, \"n\": 2, \"logprobs\": true, \"temperature\": 1, \"messages\": [{\"role\": \"user\", \"content\": \"", "\"}], \"max_tokens\": 9}");
  OK(mistral_session_chat(session, request, strlen(request), NULL, on_chunk, NULL, &response));
  OK(mistral_buf_free(response));
  uint32_t some[8];
  size_t count = 0;
  CHECK(mistral_chat_encode(model, request, strlen(request), NONE, some, 2, &count) == MISTRAL_E_BUFFER_TOO_SMALL, "there is room");
  OK(mistral_chat_render(model, request, strlen(request), NONE, &response));
  OK(mistral_buf_free(response));
  forget_text(request);
  char *text = with_text("[THINK]", "[/THINK] and so on");
  OK(mistral_chat_parse(model, text, strlen(text), NONE, NONE, &response));
  OK(mistral_buf_free(response));
  forget_text(text);
  const char *wrong[][2] = {
      {"{\"messages\": [{\"role\": \"", "\", \"content\": \"x\"}]}"}, {"{\"messages\": \"", "\"}"},
      {"{\"", "\": 1, \"messages\": []}"}, {"{\"messages\": [{\"role\": \"user\", \"content\": \"", ""},
      {"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"response_format\": {\"type\": \"json_schema\", \"json_schema\": {\"schema\": {\"pattern\": \"(", "\"}}}}"},
  };
  for (size_t i = 0; i < sizeof wrong / sizeof *wrong; ++i) {
    request = with_text(wrong[i][0], wrong[i][1]);
    refused(mistral_session_chat(session, request, strlen(request), NULL, NULL, NULL, &response));
    forget_text(request);
  }
}

/* Tokens and sessions. */
static void generates(const mistral_model *model, mistral_session *session) {
  char *text = with_text("", "");
  uint32_t ids[LONGEST];
  size_t count = 0;
  OK(mistral_encode(model, text, strlen(text), NONE, ids, LONGEST, &count));
  forget_text(text);
  disguise(&tokens, ids, count * sizeof *ids);
  OK(mistral_session_reset(session));
  OK(mistral_prefill(session, ids, count, NULL, NULL, NULL));
  mistral_session *fork = NULL, *loaded = NULL;
  OK(mistral_session_fork(session, &fork));
  const char *options = "{\"max_tokens\": 12, \"temperature\": 1, \"repetition_penalty\": 1.1, \"regex\": \"[a-z ]+\"}";
  OK(mistral_generate(fork, ids, count, options, strlen(options), NULL, on_event, NULL));
  mistral_generation *generation = NULL;
  OK(mistral_generation_new(session, ids, count, NONE, NULL, NULL, NULL, &generation));
  const mistral_event *event = NULL;
  for (int i = 0; i < 5; ++i) OK(mistral_generation_next(generation, &event));
  OK(mistral_generation_free(generation));
  mistral_buf *saved = NULL, *decoded = NULL;
  OK(mistral_session_save(session, NONE, NULL, NULL, NULL, &saved));
  OK(mistral_session_load(model, mistral_buf_data(saved), mistral_buf_len(saved), NONE, NULL, NULL, NULL, &loaded));
  OK(mistral_decode(model, ids, count, NONE, &decoded));
  float vector[LONGEST];
  size_t dim = 0;
  OK(mistral_embed(model, ids, count, NONE, NULL, vector, LONGEST, &dim));
  forget(ids, sizeof ids);
  present(&tokens);
  present(&canary);
  OK(mistral_buf_free(decoded));
  OK(mistral_buf_free(saved));
  OK(mistral_session_free(loaded));
  OK(mistral_session_free(fork));
  OK(mistral_session_trim(session, 1));
  absent("a session that was cut");
}

static void look_into(const char *path) {
  int file = open(path, O_RDONLY);
  CHECK(file >= 0, "%s was not written", path);
  size_t all = 0;
  for (ssize_t got; (got = read(file, window, WINDOW)) > 0; all += (size_t)got)
    CHECK(occurrences(&canary, window, (size_t)got) == 0, "the text is in %s", path);
  CHECK(all > 1000, "%s has %zu bytes only", path, all);
  close(file);
}

int main(int argc, char **argv) {
  CHECK(argc == 3, "usage: canary MODEL AUDIT");
  /* "zebra-quartz-91 hides nothing", in disguise. */
  static const unsigned char disguised[] = {
      'z' ^ DISGUISE, 'e' ^ DISGUISE, 'b' ^ DISGUISE, 'r' ^ DISGUISE, 'a' ^ DISGUISE, '-' ^ DISGUISE, 'q' ^ DISGUISE,
      'u' ^ DISGUISE, 'a' ^ DISGUISE, 'r' ^ DISGUISE, 't' ^ DISGUISE, 'z' ^ DISGUISE, '-' ^ DISGUISE, '9' ^ DISGUISE,
      '1' ^ DISGUISE, ' ' ^ DISGUISE, 'h' ^ DISGUISE, 'i' ^ DISGUISE, 'd' ^ DISGUISE, 'e' ^ DISGUISE, 's' ^ DISGUISE,
      ' ' ^ DISGUISE, 'n' ^ DISGUISE, 'o' ^ DISGUISE, 't' ^ DISGUISE, 'h' ^ DISGUISE, 'i' ^ DISGUISE, 'n' ^ DISGUISE,
      'g' ^ DISGUISE};
  memcpy(canary.bytes, disguised, sizeof disguised);
  canary.len = sizeof disguised;
  /* Pages that nobody else can have, with one before and one behind that cannot be read. */
  unsigned char *space = mmap(NULL, WINDOW + 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(space != MAP_FAILED, "no memory");
  window = space + 4096;
  CHECK(mprotect(window, WINDOW, PROT_READ | PROT_WRITE) == 0, "no memory");
  OK(mistral_set_log(log_line, NULL));

  char options[4096];
  int len = snprintf(options, sizeof options,
                     "{\"threads\": 2, \"audit\": {\"path\": \"%s\", \"required\": true, \"key\": \"00112233445566778899aabbccddeeff\"}}", argv[2]);
  mistral_model *model = NULL;
  mistral_session *session = NULL;
  OK(mistral_model_open(argv[1], strlen(argv[1]), options, (size_t)len, NULL, NULL, NULL, &model));
  OK(mistral_session_new(model, NONE, &session));
  chats(model, session);
  generates(model, session);
  OK(mistral_session_free(session));
  absent("sessions that were freed, the model still open");
  OK(mistral_model_free(model));
  absent("everything freed");
  look_into(argv[2]);
  CHECK(told == 0, "the log was told the text");
  return 0;
}
