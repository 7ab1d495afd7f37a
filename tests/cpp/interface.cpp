// mistral.hpp on a tiny model, in C++11 to C++20, with exceptions and without: interface MODEL
#include <mistral.hpp>

#include <dlfcn.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>
#if __cplusplus >= 202002L
#include <span>
#endif

#define CHECK(condition)                                                  \
  do {                                                                    \
    if (!(condition)) {                                                   \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                       \
    }                                                                     \
  } while (0)

using mistral::Buffer;
using mistral::Cancel;
using mistral::Error;
using mistral::Event;
using mistral::Generation;
using mistral::Model;
using mistral::Returned;
using mistral::Session;
using mistral::View;

template <class T>
void moves_only() {
  static_assert(std::is_nothrow_move_constructible<T>::value && std::is_move_assignable<T>::value, "it moves");
  static_assert(!std::is_copy_constructible<T>::value && !std::is_copy_assignable<T>::value, "and is not copied");
  static_assert(std::is_default_constructible<T>::value, "it can be empty");
}

// The value of a call that must succeed, and the error of one that must fail.
#ifdef MISTRAL_NO_EXCEPTIONS
template <class T>
T must(mistral::Result<T> &&result) {
  if (!result) std::fprintf(stderr, "%s: %s\n", result.error().name(), result.error().what());
  CHECK(result);
  return std::move(result).value();
}
inline void must(mistral::Result<void> &&result) { CHECK(result); }
template <class Call>
Error fails(Call call) {
  auto result = call();
  CHECK(!result);
  return result.error();
}
#define MUST(call) must(call)
#else
#define MUST(call) call
template <class Call>
Error fails(Call call) {
  try {
    (void)call();
  } catch (const Error &error) {
    return error;
  }
  CHECK(false && "it should have failed");
  return Error();
}
#endif

// What the library would call with a message; it has none while nothing fails.
static mistral_log_fn log_function;
static void *log_data;

extern "C" mistral_status mistral_set_log(mistral_log_fn callback, void *user_data) {
  using SetLog = mistral_status (*)(mistral_log_fn, void *);
  static const SetLog library = reinterpret_cast<SetLog>(dlsym(RTLD_NEXT, "mistral_set_log"));
  log_function = callback;
  log_data = user_data;
  return library(callback, user_data);
}

static bool has(const std::string &text, const char *part) { return text.find(part) != std::string::npos; }

static void library() {
  CHECK(std::string(mistral::version()) == mistral_version());
  CHECK(has(MUST(mistral::build_info()).str(), mistral::version()));
  Buffer devices = MUST(mistral::devices());
  CHECK(has(std::string(devices.view()), "cpu") && devices.size() == devices.str().size());
  Buffer moved = std::move(devices);
  CHECK(devices.size() == 0 && devices.data()[0] == 0 && moved.size() > 0);  // NOLINT: empty after a move, as promised
}

static void logs() {
  using mistral::Log;
  std::string told;
  const auto named = [&](const char *name) {
    return [&told, name](std::int32_t, View message) { told += name + std::string(message); };
  };
  const auto tells = [&](const char *expected) {
    told.clear();
    if (log_function != nullptr) log_function(log_data, MISTRAL_LOG_ERROR, "!", 1);
    return told == expected;
  };
  {
    Log log = MUST(Log::set(named("a")));
    CHECK(tells("a!"));
    // The one that is replaced goes after the other was set.
    log = MUST(Log::set(named("b")));
    CHECK(tells("b!"));
    Log other = MUST(Log::set(named("c")));
    log = Log();
    CHECK(tells("c!"));
    log = std::move(other);
    CHECK(tells("c!"));
    other = MUST(Log::set(named("d")));
    // It is empty after a move, so this ends what it had, and no more.
    log = std::move(other);
    CHECK(tells("d!"));
    Log moved = std::move(log);
    log = Log();
    CHECK(tells("d!"));
    moved = Log();
    CHECK(log_function == nullptr);
    log = MUST(Log::set(named("e")));
    CHECK(tells("e!"));
  }
  CHECK(log_function == nullptr);
}

static void errors(const char *path) {
  Error error = fails([] { return Model::open("/nowhere"); });
  CHECK(error.status() == MISTRAL_E_IO && std::string(error.name()) == "MISTRAL_E_IO");
  CHECK(has(error.what(), "/nowhere") && has(error.details(), "\"file\"") && error.description()[0] != 0);
  error = fails([&] { return Model::open(path, "{\"devise\": 1}"); });
  CHECK(error.status() == MISTRAL_E_ARGUMENT && has(error.what(), "devise"));
  Model empty;
  CHECK(fails([&] { return empty.info(); }).status() == MISTRAL_E_NULL);
  CHECK(fails([] { return Session().logits(); }).status() == MISTRAL_E_NULL);
}

static void steering(const char *path) {
  std::uint64_t last = 0;
  std::string phase;
  Model model = MUST(Model::open(path, View(), nullptr, [&](const mistral::Progress &progress) {
    CHECK(progress.done >= last && progress.done <= progress.total);
    last = progress.done;
    phase = std::string(progress.phase);
  }));
  CHECK(phase == "load" && last > 0);
  Error error = fails([&] { return Model::open(path, View(), nullptr, [](const mistral::Progress &) { return false; }); });
  CHECK(error.status() == MISTRAL_E_CANCELLED);
  const Cancel cancel = MUST(Cancel::create());
  MUST(cancel.trigger());
  CHECK(fails([&] { return Model::open(path, View(), &cancel); }).status() == MISTRAL_E_CANCELLED);
  MUST(cancel.reset());
  model = MUST(Model::open(std::string(path), "{\"threads\": 1}", &cancel));
}

static void text(const Model &model) {
  const std::vector<std::uint32_t> tokens = MUST(model.encode("hello"));
  CHECK(tokens.size() == 3 && MUST(model.decode(tokens)).str() == "hello");
  CHECK(MUST(model.encode(std::string("a\0b", 3))).size() == 3);
  CHECK(MUST(model.encode("x", "{\"bos\": true}")).size() == 2);
  CHECK(fails([&] { return model.encode("\xff"); }).status() == MISTRAL_E_UTF8);
  const std::uint32_t array[] = {104, 105};
  CHECK(MUST(model.decode(array)).size() == 2);
  CHECK(MUST(model.decode(std::array<std::uint32_t, 2>{{104, 105}})).size() == 2);
#if __cplusplus >= 202002L
  CHECK(MUST(model.decode(std::span<const std::uint32_t>(array))).size() == 2);
#endif
#ifdef MISTRAL_CPP17
  CHECK(MUST(model.encode(std::string_view("hello"))).size() == 3);
#endif
  CHECK(has(MUST(model.info()).str(), "vocab_size"));
}

// Without an address, they are not the same as nothing.
static void empty_texts_and_lists(const Model &model) {
  const std::vector<std::uint32_t> none;
  CHECK(MUST(model.encode(View())).empty() && MUST(model.encode("")).empty() && MUST(model.decode(none)).size() == 0);
  CHECK(MUST(model.chat_parse(View())).str() == MUST(model.chat_parse("")).str());
  CHECK(fails([&] { return model.fim_encode("a", View()); }).status() == MISTRAL_E_UNSUPPORTED);
  CHECK(fails([&] { return model.fim_encode(View(), "a"); }).status() == MISTRAL_E_UNSUPPORTED);
  CHECK(fails([&] { return model.embed(none); }).status() == MISTRAL_E_ARGUMENT);
  CHECK(fails([&] { return model.chat(View()); }).status() == MISTRAL_E_ARGUMENT);
  CHECK(fails([&] { return model.chat_encode(View()); }).status() == MISTRAL_E_ARGUMENT);
  CHECK(fails([&] { return model.chat_render(View()); }).status() == MISTRAL_E_ARGUMENT);
  CHECK(fails([&] { return model.load_session(View()); }).status() == MISTRAL_E_FORMAT);
  Session session = MUST(model.session());
  CHECK(fails([&] { return session.prefill(none); }).status() == MISTRAL_E_ARGUMENT);
  CHECK(fails([&] { return session.chat(View()); }).status() == MISTRAL_E_ARGUMENT);
  CHECK(fails([] { return Model::open(View()); }).status() == MISTRAL_E_IO);
  CHECK(fails([] { return Model::estimate(View()); }).status() == MISTRAL_E_IO);
  CHECK(fails([] { return mistral::audit_verify(View()); }).status() == MISTRAL_E_INTEGRITY);
  CHECK(fails([] { return mistral::verify(View(), View()); }).status() == MISTRAL_E_ARGUMENT);
}

static void chat_formats(const Model &model) {
  const char *request = "{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}]}";
  const std::vector<std::uint32_t> tokens = MUST(model.chat_encode(request));
  CHECK(tokens.size() > 5 && has(MUST(model.chat_render(request)).str(), "user: hello"));
  CHECK(has(MUST(model.chat_parse("hello")).str(), "\"content\":\"hello\""));
  CHECK(MUST(model.chat_parse(MUST(model.encode("hello")))).str() == MUST(model.chat_parse("hello")).str());
  CHECK(fails([&] { return model.fim_encode("a", "b"); }).status() == MISTRAL_E_UNSUPPORTED);
}

static std::vector<std::uint32_t> generated(Session &session, const std::vector<std::uint32_t> &prompt) {
  std::vector<std::uint32_t> tokens;
  MUST(session.generate(prompt, "{\"max_tokens\": 8, \"ignore_eos\": true, \"logprobs\": 2}", nullptr, [&](const Event &event) {
    CHECK(event.top_logprobs_len == 2 && event.top_logprobs[0].logprob >= event.top_logprobs[1].logprob);
    tokens.push_back(event.token);
    CHECK((event.finish_reason == MISTRAL_FINISH_LENGTH) == (tokens.size() == 8));
  }));
  return tokens;
}

static void generating(const Model &model) {
  const char *options = "{\"max_tokens\": 8, \"ignore_eos\": true}";
  const std::vector<std::uint32_t> prompt = MUST(model.encode("hello"));
  Session session = MUST(model.session("{\"context\": 64}"));
  const std::vector<std::uint32_t> expected = generated(session, prompt);
  CHECK(expected.size() == 8 && has(MUST(session.stats()).str(), "\"context\":64"));

  // The same as a range, event by event, and as steps.
  MUST(session.reset());
  std::vector<std::uint32_t> tokens;
  Generation generation = MUST(session.generation(prompt, options));
  CHECK(fails([&] { return session.reset(); }).status() == MISTRAL_E_BUSY);
  for (const Event &event : generation) tokens.push_back(event.token);
  CHECK(tokens == expected && generation.finished() && generation.error().status() == MISTRAL_OK);
  CHECK(generation.begin() == generation.end());
  generation = Generation();
  MUST(session.reset());
  generation = MUST(session.generation(prompt, options));
  for (tokens.clear(); !generation.finished();) tokens.push_back(MUST(generation.next()).token);
  CHECK(tokens == expected && fails([&] { return generation.next(); }).status() == MISTRAL_E_ARGUMENT);
  generation = Generation();
  MUST(session.reset());
  MUST(session.prefill(prompt));
  for (std::uint32_t token : expected) {
    const std::vector<float> logits = MUST(session.logits());
    CHECK(logits.size() == 260 && logits[token] >= logits[0]);
    CHECK(MUST(session.sample()).token == token);
  }
}

static void sessions(const char *path, const Model &model) {
  const std::vector<std::uint32_t> prompt = MUST(model.encode("hello"));
  Session session = MUST(model.session());
  MUST(session.prefill(prompt));
  Session fork = MUST(session.fork());
  const std::uint32_t expected = MUST(fork.sample()).token;
  MUST(fork.trim(prompt.size()));
  CHECK(MUST(fork.sample()).token == expected);
  std::string phase;
  const Buffer saved = MUST(session.save("{\"key\": \"000102030405060708090a0b0c0d0e0f\"}", nullptr,
                                         [&](const mistral::Progress &progress) { phase = std::string(progress.phase); }));
  CHECK(phase == "digest" && fails([&] { return model.load_session(saved); }).status() == MISTRAL_E_INTEGRITY);
  Session loaded = MUST(model.load_session(saved, "{\"key\": \"000102030405060708090a0b0c0d0e0f\"}"));
  CHECK(MUST(loaded.sample()).token == expected);
  CHECK(MUST(model.embed(prompt)).size() == 32 && has(MUST(Model::estimate(path)).str(), "total_bytes"));
  int chunks = 0;
  const char *request = "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"max_tokens\": 3}";
  CHECK(has(MUST(session.chat(request)).str(), "\"cached_tokens\":0"));
  std::string stream(request);
  stream.insert(1, "\"stream\": true, ");
  CHECK(!has(MUST(session.chat(stream, nullptr, [&](View) { chunks++; })).str(), "\"cached_tokens\":0") && chunks > 0);
}

// A step that fails ends a range.
static void failing_range(const Model &model) {
  const Cancel cancel = MUST(Cancel::create());
  Session session = MUST(model.session());
  Generation generation = MUST(session.generation(MUST(model.encode("hello")), "{\"ignore_eos\": true}", &cancel));
  int events = 0;
  const auto loop = [&]() {
    for (const Event &event : generation) {
      (void)event;
      if (++events == 3) MUST(cancel.trigger());
    }
  };
#ifdef MISTRAL_NO_EXCEPTIONS
  loop();
#else
  CHECK(fails([&] { return loop(), 0; }).status() == MISTRAL_E_CANCELLED);
#endif
  CHECK(events == 3 && generation.finished() && generation.error().status() == MISTRAL_E_CANCELLED);
}

static void callbacks(const Model &model) {
  const std::vector<std::uint32_t> prompt = MUST(model.encode("hello"));
  Session session = MUST(model.session());
  int events = 0;
  const auto stop = [&](const Event &) { return ++events < 3; };
  Error error = fails([&] { return session.generate(prompt, "{\"ignore_eos\": true}", nullptr, stop); });
  CHECK(error.status() == MISTRAL_E_CANCELLED && events == 3);
  int chunks = 0;
  const char *request = "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"max_tokens\": 3, \"stream\": true}";
  Buffer response = MUST(model.chat(request, nullptr, [&](View chunk) {
    CHECK(chunk.size() > 0);
    chunks++;
  }));
  CHECK(chunks > 0 && has(response.str(), "chat.completion"));
#ifndef MISTRAL_NO_EXCEPTIONS
  // What a callback throws arrives where the call was made.
  struct Stop {};
  bool caught = false;
  MUST(session.reset());
  for (int call = 0; call < 3; call++) {
    caught = false;
    try {
      if (call == 0) session.generate(prompt, View(), nullptr, [](const Event &) { throw Stop(); });
      if (call == 1) session.prefill(prompt, nullptr, [](const mistral::Progress &) { throw Stop(); });
      if (call == 2) model.chat(request, nullptr, [](View) { throw Stop(); });
    } catch (const Stop &) {
      caught = true;
    }
    CHECK(caught);
  }
#endif
}

static void lifetimes(const char *path) {
  Session session;
  {
    Model model = MUST(Model::open(path));
    session = MUST(model.session());
  }
  // The session keeps its model alive.
  MUST(session.prefill(std::vector<std::uint32_t>{104, 105}));
  const Model model = MUST(Model::open(path));
  std::atomic<int> answers{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; i++)
    threads.emplace_back([&] {
      Session own = MUST(model.session());
      answers += static_cast<int>(generated(own, MUST(model.encode("hello"))).size());
    });
  for (std::thread &thread : threads) thread.join();
  CHECK(answers == 32);
}

int main(int argc, char **argv) {
  CHECK(argc == 2);
  moves_only<Buffer>();
  moves_only<Cancel>();
  moves_only<Generation>();
  moves_only<mistral::Log>();
  moves_only<Model>();
  moves_only<Session>();
  library();
  logs();
  errors(argv[1]);
  steering(argv[1]);
  const Model model = MUST(Model::open(argv[1]));
  text(model);
  empty_texts_and_lists(model);
  chat_formats(model);
  generating(model);
  sessions(argv[1], model);
  failing_range(model);
  callbacks(model);
  lifetimes(argv[1]);
  return 0;
}
