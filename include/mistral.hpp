/*
 * mistral.hpp: mistral.h for C++11 and later. Everything is inline; there is nothing more to link than the C library.
 *
 * The rules, beside those of mistral.h:
 *
 * - Objects own their handles and free them; they are moved, not copied. One that was moved from, or default-constructed,
 *   is empty: its calls fail with MISTRAL_E_NULL.
 * - A call that fails throws mistral::Error. Without exceptions (-fno-exceptions, or MISTRAL_NO_EXCEPTIONS defined before
 *   the #include) it returns a mistral::Result instead: Returned<T> below is T with exceptions, Result<T> without.
 * - Options, requests and reports are JSON text, as in mistral.h; use the JSON library that you have.
 * - A callback is anything that can be called. It returns nothing, or a bool: false stops the call, which then fails with
 *   MISTRAL_E_CANCELLED. What it throws passes through: the call stops, and throws it on.
 * - View is std::string_view from C++17 on, and a small class like it before. TokenView is the same for tokens: a
 *   std::vector<uint32_t>, an array, a std::span. Neither keeps what it shows alive.
 */
#ifndef MISTRAL_HPP
#define MISTRAL_HPP

#include "mistral.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <iterator>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if !defined(__cpp_exceptions) && !defined(__EXCEPTIONS) && !defined(_CPPUNWIND) && !defined(MISTRAL_NO_EXCEPTIONS)
#define MISTRAL_NO_EXCEPTIONS
#endif

#if __cplusplus >= 201703L || (defined(_MSVC_LANG) && _MSVC_LANG >= 201703L)
#include <string_view>
#define MISTRAL_CPP17 1
#define MISTRAL_NODISCARD [[nodiscard]]
#else
#define MISTRAL_NODISCARD
#endif

/* Parts of a program that are compiled differently may be linked together: what differs has another name. */
#if defined(MISTRAL_NO_EXCEPTIONS) && defined(MISTRAL_CPP17)
#define MISTRAL_VARIANT results_17
#elif defined(MISTRAL_NO_EXCEPTIONS)
#define MISTRAL_VARIANT results_11
#elif defined(MISTRAL_CPP17)
#define MISTRAL_VARIANT exceptions_17
#else
#define MISTRAL_VARIANT exceptions_11
#endif

namespace mistral {

/* The function that is told what the library has to say: one for the process, so one for all variants. */
struct LogState {
  std::mutex mutex;
  void *function = nullptr;
};

/* Never destroyed: a Log may go later than anything else. */
inline LogState &log_state() {
  static LogState *const state = new LogState;
  return *state;
}

inline namespace MISTRAL_VARIANT {

#ifdef MISTRAL_CPP17
using View = std::string_view;
#else
/* Text that somebody else owns. */
class View {
 public:
  View() noexcept : data_(nullptr), size_(0) {}
  View(const char *text) : data_(text), size_(std::strlen(text)) {}
  View(const char *data, std::size_t size) noexcept : data_(data), size_(size) {}
  View(const std::string &text) noexcept : data_(text.data()), size_(text.size()) {}

  const char *data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  bool empty() const noexcept { return size_ == 0; }
  const char *begin() const noexcept { return data_; }
  const char *end() const noexcept { return data_ + size_; }
  explicit operator std::string() const { return size_ == 0 ? std::string() : std::string(data_, size_); }

 private:
  const char *data_;
  std::size_t size_;
};
#endif

/* Tokens that somebody else owns. */
class TokenView {
 public:
  TokenView() noexcept : data_(nullptr), size_(0) {}
  TokenView(const std::uint32_t *data, std::size_t size) noexcept : data_(data), size_(size) {}
  template <std::size_t N>
  TokenView(const std::uint32_t (&tokens)[N]) noexcept : data_(tokens), size_(N) {}
  /* Whatever has its tokens in one piece. */
  template <class Tokens, class = typename std::enable_if<std::is_convertible<
                              decltype(std::declval<const Tokens &>().data()), const std::uint32_t *>::value>::type>
  TokenView(const Tokens &tokens) noexcept : data_(tokens.data()), size_(tokens.size()) {}

  const std::uint32_t *data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }

 private:
  const std::uint32_t *data_;
  std::size_t size_;
};

/* The version of the library that runs: "1.2.3". The header's is in MISTRAL_VERSION_MAJOR and so on. */
inline const char *version() noexcept { return mistral_version(); }

namespace detail {

template <class T, mistral_status (*Free)(T *)>
struct Deleter {
  void operator()(T *handle) const noexcept { (void)Free(handle); }
};

template <class T, mistral_status (*Free)(T *)>
using Owned = std::unique_ptr<T, Deleter<T, Free>>;

}  // namespace detail

/* Bytes that the library made, most often UTF-8 text. They are overwritten with zeros when this goes. */
class Buffer {
 public:
  Buffer() noexcept = default;
  explicit Buffer(mistral_buf *handle) noexcept : handle_(handle) {}

  /* NUL-terminated; of an empty object, an empty text. */
  const char *data() const noexcept {
    const char *data = mistral_buf_data(handle_.get());
    return data == nullptr ? "" : data;
  }
  std::size_t size() const noexcept { return mistral_buf_len(handle_.get()); }
  View view() const noexcept { return View(data(), size()); }
  std::string str() const { return std::string(data(), size()); }
  operator View() const noexcept { return view(); }
  const mistral_buf *get() const noexcept { return handle_.get(); }

 private:
  detail::Owned<mistral_buf, mistral_buf_free> handle_;
};

/* A call that failed. Without exceptions also one that did not: `status()` is MISTRAL_OK. */
class Error : public std::runtime_error {
 public:
  Error() : std::runtime_error(""), status_(MISTRAL_OK) {}
  /* The call that has just failed on this thread. */
  explicit Error(mistral_status status) : std::runtime_error(last_message()), status_(status) {
    mistral_buf *details = nullptr;
    if (mistral_last_error_json(&details) == MISTRAL_OK) details_ = Buffer(details).str();
  }

  mistral_status status() const noexcept { return status_; }
  /* "MISTRAL_E_ARGUMENT" */
  const char *name() const noexcept { return mistral_status_name(status_); }
  /* What the status means; `what()` says what happened. */
  const char *description() const noexcept { return mistral_status_description(status_); }
  /* The parts of the message as JSON: see mistral_last_error_json. */
  const std::string &details() const noexcept { return details_; }

 private:
  static std::string last_message() {
    std::string message(mistral_last_error(nullptr, 0) + 1, '\0');
    message.resize(mistral_last_error(&message[0], message.size()));
    return message;
  }

  mistral_status status_;
  std::string details_;
};

/* What a call gave, or why it gave nothing. */
template <class T>
class MISTRAL_NODISCARD Result {
 public:
  Result(T &&value) : value_(std::move(value)) {}
  Result(Error &&error) : value_(), error_(std::move(error)) {}

  explicit operator bool() const noexcept { return error_.status() == MISTRAL_OK; }
  const Error &error() const noexcept { return error_; }
  /* Of a call that failed: an empty value. */
  T &value() & noexcept { return value_; }
  const T &value() const & noexcept { return value_; }
  T &&value() && noexcept { return std::move(value_); }
  T &operator*() & noexcept { return value_; }
  T *operator->() noexcept { return &value_; }

 private:
  T value_;
  Error error_;
};

template <>
class MISTRAL_NODISCARD Result<void> {
 public:
  Result() = default;
  Result(Error &&error) : error_(std::move(error)) {}

  explicit operator bool() const noexcept { return error_.status() == MISTRAL_OK; }
  const Error &error() const noexcept { return error_; }

 private:
  Error error_;
};

#ifdef MISTRAL_NO_EXCEPTIONS
template <class T>
using Returned = Result<T>;
#else
template <class T>
using Returned = T;
#endif

/* How far a long call has come. */
struct Progress {
  explicit Progress(const mistral_progress &raw) : phase(raw.phase), done(raw.done), total(raw.total) {}

  View phase;
  std::uint64_t done, total;
};

/* One step of a generation: exactly one for each token. What it shows lives until the next step, or the callback's end. */
struct Event {
  Event() noexcept = default;
  explicit Event(const mistral_event &raw) noexcept
      : text(raw.text, raw.text_len), token(raw.token), finish_reason(raw.finish_reason), logprob(raw.logprob),
        top_logprobs(raw.top_logprobs), top_logprobs_len(raw.top_logprobs_len) {}

  View text;
  std::uint32_t token = 0;
  std::int32_t finish_reason = MISTRAL_FINISH_NONE;
  float logprob = 0;
  const mistral_token_logprob *top_logprobs = nullptr;
  std::size_t top_logprobs_len = 0;
};

namespace detail {

/* The value, or the error of the call that has just been made. */
template <class T>
Returned<T> give(mistral_status status, T &&value) {
#ifdef MISTRAL_NO_EXCEPTIONS
  if (status != MISTRAL_OK) return Error(status);
#else
  if (status != MISTRAL_OK) throw Error(status);
#endif
  return std::move(value);
}

inline Returned<void> done(mistral_status status) {
#ifdef MISTRAL_NO_EXCEPTIONS
  return status == MISTRAL_OK ? Result<void>() : Result<void>(Error(status));
#else
  if (status != MISTRAL_OK) throw Error(status);
#endif
}

/* For what must not be NULL: an empty text or list is there, too. */
inline const char *data(View text) noexcept { return text.size() == 0 ? "" : text.data(); }
inline const std::uint32_t *data(TokenView tokens) noexcept {
  static const std::uint32_t none = 0;
  return tokens.size() == 0 ? &none : tokens.data();
}

/* Nothing is called. */
struct Silent {
  template <class Argument>
  void operator()(const Argument &) const noexcept {}
};

/* A callable behind a function pointer of C, which no exception leaves. */
template <class F>
class Callback {
 public:
  explicit Callback(F &function) noexcept : function_(function) {}

  static std::int32_t on_progress(void *self, const mistral_progress *progress) noexcept {
    return static_cast<Callback *>(self)->call(Progress(*progress));
  }
  static std::int32_t on_event(void *self, const mistral_event *event) noexcept {
    return static_cast<Callback *>(self)->call(Event(*event));
  }
  static std::int32_t on_chunk(void *self, const char *chunk, std::size_t size) noexcept {
    return static_cast<Callback *>(self)->call(View(chunk, size));
  }
  static constexpr mistral_progress_fn progress() noexcept {
    return std::is_same<F, const Silent>::value ? nullptr : &Callback::on_progress;
  }

  /* Throws what the callable has thrown. */
  mistral_status finish(mistral_status status) const {
#ifndef MISTRAL_NO_EXCEPTIONS
    if (thrown_) std::rethrow_exception(thrown_);
#endif
    return status;
  }

 private:
  template <class Argument>
  std::int32_t call(const Argument &argument) noexcept {
    using Answer = decltype(std::declval<F &>()(argument));
    static_assert(std::is_void<Answer>::value || std::is_same<Answer, bool>::value,
                  "a callback returns nothing, or a bool: false stops the call");
#ifdef MISTRAL_NO_EXCEPTIONS
    return goes_on(argument, std::is_void<Answer>()) ? 0 : 1;
#else
    try {
      return goes_on(argument, std::is_void<Answer>()) ? 0 : 1;
    } catch (...) {
      thrown_ = std::current_exception();
      return 1;
    }
#endif
  }
  template <class Argument>
  bool goes_on(const Argument &argument, std::true_type) {
    function_(argument);
    return true;
  }
  template <class Argument>
  bool goes_on(const Argument &argument, std::false_type) {
    return function_(argument);
  }

  F &function_;
#ifndef MISTRAL_NO_EXCEPTIONS
  std::exception_ptr thrown_;
#endif
};

template <class F>
using CallbackOf = Callback<typename std::remove_reference<F>::type>;

/* A call whose only result is a buffer. */
template <class Call>
Returned<Buffer> buffer(Call call) {
  mistral_buf *out = nullptr;
  const mistral_status status = call(&out);
  return give(status, Buffer(out));
}

/* The same for a chat whose chunks are given to `on_chunk`. */
template <class F, class Call>
Returned<Buffer> streamed(F &on_chunk, Call call) {
  Callback<F> callback(on_chunk);
  mistral_buf *out = nullptr;
  const mistral_status status = call(&Callback<F>::on_chunk, static_cast<void *>(&callback), &out);
  Buffer response(out);
  return give(callback.finish(status), std::move(response));
}

/* A call that fills an array, and says how long it should be where it is too short. */
template <class T, class Call>
Returned<std::vector<T>> array(std::size_t capacity, Call call) {
  std::vector<T> values(capacity);
  std::size_t count = 0;
  mistral_status status = call(values.data(), values.size(), &count);
  if (status == MISTRAL_E_BUFFER_TOO_SMALL) {
    values.resize(count);
    status = call(values.data(), values.size(), &count);
  }
  values.resize(status == MISTRAL_OK ? count : 0);
  return give(status, std::move(values));
}

}  // namespace detail

/* What this build of the library is, as JSON. */
inline Returned<Buffer> build_info() {
  return detail::buffer([](mistral_buf **out) { return mistral_build_info(out); });
}

/* The devices that this build can open on this machine, as JSON. */
inline Returned<Buffer> devices() {
  return detail::buffer([](mistral_buf **out) { return mistral_devices(out); });
}

/*
 * Gives what the library has to say to a function, for the whole process, until this goes or another one is set. The
 * function may be called from any thread, several at once; it must neither set one nor end this, and what it throws is
 * dropped.
 */
class Log {
 public:
  using Function = std::function<void(std::int32_t level, View message)>;

  static Returned<Log> set(Function function) {
    Log log;
    log.function_.reset(new Function(std::move(function)));
    const mistral_status status = log.install();
    if (status != MISTRAL_OK) log.function_.reset();
    return detail::give(status, std::move(log));
  }

  Log() noexcept = default;
  Log(Log &&) noexcept = default;
  Log &operator=(Log &&other) noexcept {
    Log moved(std::move(other));
    std::swap(function_, moved.function_);
    return *this;
  }
  ~Log() {
    if (!function_) return;
    LogState &state = log_state();
    const std::lock_guard<std::mutex> lock(state.mutex);
    /* Another one may have been set since. */
    if (state.function != function_.get()) return;
    if (mistral_set_log(nullptr, nullptr) == MISTRAL_OK) {
      state.function = nullptr;
    } else {
      /* It is still called. */
      (void)function_.release();
    }
  }

 private:
  mistral_status install() {
    LogState &state = log_state();
    const std::lock_guard<std::mutex> lock(state.mutex);
    const mistral_status status = mistral_set_log(&Log::call, function_.get());
    if (status == MISTRAL_OK) state.function = function_.get();
    return status;
  }
  static void call(void *self, std::int32_t level, const char *message, std::size_t size) noexcept {
#ifdef MISTRAL_NO_EXCEPTIONS
    (*static_cast<Function *>(self))(level, View(message, size));
#else
    try {
      (*static_cast<Function *>(self))(level, View(message, size));
    } catch (...) {
    }
#endif
  }

  std::unique_ptr<Function> function_;
};

/* Stops calls that were given it, from any thread. */
class Cancel {
 public:
  static Returned<Cancel> create() {
    mistral_cancel *out = nullptr;
    const mistral_status status = mistral_cancel_new(&out);
    return detail::give(status, Cancel(out));
  }

  Cancel() noexcept = default;
  explicit Cancel(mistral_cancel *handle) noexcept : handle_(handle) {}

  Returned<void> trigger() const { return detail::done(mistral_cancel_trigger(handle_.get())); }
  Returned<void> reset() const { return detail::done(mistral_cancel_reset(handle_.get())); }
  const mistral_cancel *get() const noexcept { return handle_.get(); }
  /* The handle of a cancel object, or none. */
  static const mistral_cancel *get(const Cancel *cancel) noexcept { return cancel ? cancel->get() : nullptr; }

 private:
  detail::Owned<mistral_cancel, mistral_cancel_free> handle_;
};

/*
 * A generation that is asked for one event at a time. It keeps its session to itself until it goes.
 *
 *   for (const mistral::Event &event : generation) std::cout << event.text;
 *
 * Without exceptions such a loop also ends where a step fails: `error()` says whether it did.
 */
class Generation {
 public:
  class Iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = Event;
    using difference_type = std::ptrdiff_t;
    using pointer = const Event *;
    using reference = const Event &;

    explicit Iterator(Generation *generation) noexcept : generation_(generation) {}
    reference operator*() const noexcept { return generation_->event_; }
    pointer operator->() const noexcept { return &generation_->event_; }
    Iterator &operator++() {
      generation_ = generation_->advance() ? generation_ : nullptr;
      return *this;
    }
    bool operator==(const Iterator &other) const noexcept { return generation_ == other.generation_; }
    bool operator!=(const Iterator &other) const noexcept { return generation_ != other.generation_; }

   private:
    Generation *generation_;
  };

  Generation() noexcept = default;
  explicit Generation(mistral_generation *handle) noexcept : handle_(handle) {}

  /* The next event; not after the last one, which has a finish_reason. */
  Returned<Event> next() {
    const mistral_status status = step();
    return detail::give(status, Event(event_));
  }
  /* Whether there was a last event, or an error. */
  bool finished() const noexcept { return finished_; }
  /* Why the last step of a range-for failed, if it did. */
  const Error &error() const noexcept { return error_; }
  Iterator begin() { return Iterator(advance() ? this : nullptr); }
  Iterator end() noexcept { return Iterator(nullptr); }
  mistral_generation *get() const noexcept { return handle_.get(); }

 private:
  mistral_status step() {
    const mistral_event *raw = nullptr;
    const mistral_status status = mistral_generation_next(handle_.get(), &raw);
    event_ = status == MISTRAL_OK ? Event(*raw) : Event();
    finished_ = status != MISTRAL_OK || event_.finish_reason != MISTRAL_FINISH_NONE;
    return status;
  }
  bool advance() {
    if (finished_) return false;
    const mistral_status status = step();
    if (status == MISTRAL_OK) return true;
    error_ = Error(status);
#ifndef MISTRAL_NO_EXCEPTIONS
    throw error_;
#else
    return false;
#endif
  }

  detail::Owned<mistral_generation, mistral_generation_free> handle_;
  Event event_;
  Error error_;
  bool finished_ = false;
};

/* One timeline of tokens on a model, with its cache. It keeps its model alive; one thread uses it at a time. */
class Session {
 public:
  Session() noexcept = default;
  explicit Session(mistral_session *handle) noexcept : handle_(handle) {}

  Returned<void> reset() { return detail::done(mistral_session_reset(handle_.get())); }
  /* Keeps the first `count` tokens. */
  Returned<void> trim(std::size_t count) { return detail::done(mistral_session_trim(handle_.get(), count)); }
  /* A second session with the same tokens, which goes on by itself. */
  Returned<Session> fork() const {
    mistral_session *out = nullptr;
    const mistral_status status = mistral_session_fork(handle_.get(), &out);
    return detail::give(status, Session(out));
  }
  /* Bytes for Model::load_session. */
  template <class F = const detail::Silent>
  Returned<Buffer> save(View options = View(), const Cancel *cancel = nullptr, F &&on_progress = F()) const {
    detail::CallbackOf<F> callback(on_progress);
    mistral_buf *out = nullptr;
    const mistral_status status = mistral_session_save(handle_.get(), options.data(), options.size(),
                                                       Cancel::get(cancel), callback.progress(), &callback, &out);
    Buffer saved(out);
    return detail::give(callback.finish(status), std::move(saved));
  }
  /* How full it is, as JSON. */
  Returned<Buffer> stats() const {
    return detail::buffer([this](mistral_buf **out) { return mistral_session_stats(handle_.get(), out); });
  }

  /* Appends tokens and evaluates them; `logits` are then those of the last one. */
  template <class F = const detail::Silent>
  Returned<void> prefill(TokenView tokens, const Cancel *cancel = nullptr, F &&on_progress = F()) {
    detail::CallbackOf<F> callback(on_progress);
    const mistral_status status =
        mistral_prefill(handle_.get(), detail::data(tokens), tokens.size(), Cancel::get(cancel), callback.progress(),
                        &callback);
    return detail::done(callback.finish(status));
  }
  /* One for each token of the model's vocabulary. */
  Returned<std::vector<float>> logits() const {
    return detail::array<float>(0, [&](float *logits, std::size_t capacity, std::size_t *count) {
      return mistral_logits(handle_.get(), logits, capacity, count);
    });
  }
  /* Chooses the next token and appends it. */
  Returned<mistral_token_logprob> sample(View options = View(), const Cancel *cancel = nullptr) {
    mistral_token_logprob out = {0, 0};
    const mistral_status status = mistral_sample(handle_.get(), options.data(), options.size(), Cancel::get(cancel),
                                                 &out.token, &out.logprob);
    return detail::give(status, std::move(out));
  }

  /* Appends tokens and gives each event of what follows to `on_event`. */
  template <class F>
  Returned<void> generate(TokenView tokens, View options, const Cancel *cancel, F &&on_event) {
    detail::CallbackOf<F> callback(on_event);
    const mistral_status status =
        mistral_generate(handle_.get(), tokens.data(), tokens.size(), options.data(), options.size(),
                         Cancel::get(cancel), &detail::CallbackOf<F>::on_event, &callback);
    return detail::done(callback.finish(status));
  }
  /* The same, asked for one event at a time. */
  template <class F = const detail::Silent>
  Returned<Generation> generation(TokenView tokens, View options = View(), const Cancel *cancel = nullptr,
                                  F &&on_progress = F()) {
    detail::CallbackOf<F> callback(on_progress);
    mistral_generation *out = nullptr;
    const mistral_status status =
        mistral_generation_new(handle_.get(), tokens.data(), tokens.size(), options.data(), options.size(),
                               Cancel::get(cancel), callback.progress(), &callback, &out);
    Generation generation(out);
    return detail::give(callback.finish(status), std::move(generation));
  }

  /* Answers a chat-completions request; what the session holds of the conversation already is not evaluated again. */
  Returned<Buffer> chat(View request, const Cancel *cancel = nullptr) {
    return detail::buffer([&](mistral_buf **out) {
      return mistral_session_chat(handle_.get(), detail::data(request), request.size(), Cancel::get(cancel), nullptr,
                                  nullptr, out);
    });
  }
  /* The same for a request with `"stream": true`: `on_chunk` is given each chunk, a View of JSON. */
  template <class F>
  Returned<Buffer> chat(View request, const Cancel *cancel, F &&on_chunk) {
    return detail::streamed(on_chunk, [&](mistral_chunk_fn function, void *user_data, mistral_buf **out) {
      return mistral_session_chat(handle_.get(), detail::data(request), request.size(), Cancel::get(cancel), function,
                                  user_data, out);
    });
  }
  mistral_session *get() const noexcept { return handle_.get(); }

 private:
  detail::Owned<mistral_session, mistral_session_free> handle_;
};

/* A model that was opened: immutable, for any number of sessions and threads. */
class Model {
 public:
  /* Opens a folder or a file. */
  template <class F = const detail::Silent>
  static Returned<Model> open(View path, View options = View(), const Cancel *cancel = nullptr,
                              F &&on_progress = F()) {
    detail::CallbackOf<F> callback(on_progress);
    mistral_model *out = nullptr;
    const mistral_status status = mistral_model_open(detail::data(path), path.size(), options.data(), options.size(),
                                                     Cancel::get(cancel), callback.progress(), &callback, &out);
    Model model(out);
    return detail::give(callback.finish(status), std::move(model));
  }

  /* What opening a model would take, as JSON: its weights are not read. */
  static Returned<Buffer> estimate(View path, View options = View()) {
    return detail::buffer([&](mistral_buf **out) {
      return mistral_model_estimate(detail::data(path), path.size(), options.data(), options.size(), out);
    });
  }

  Model() noexcept = default;
  explicit Model(mistral_model *handle) noexcept : handle_(handle) {}

  /* What it is, as JSON. */
  Returned<Buffer> info() const {
    return detail::buffer([this](mistral_buf **out) { return mistral_model_info(handle_.get(), out); });
  }
  Returned<Session> session(View options = View()) const {
    mistral_session *out = nullptr;
    const mistral_status status = mistral_session_new(handle_.get(), options.data(), options.size(), &out);
    return detail::give(status, Session(out));
  }

  /* A session that was saved, on the same model. */
  template <class F = const detail::Silent>
  Returned<Session> load_session(View saved, View options = View(), const Cancel *cancel = nullptr,
                                 F &&on_progress = F()) const {
    detail::CallbackOf<F> callback(on_progress);
    mistral_session *out = nullptr;
    const mistral_status status =
        mistral_session_load(handle_.get(), detail::data(saved), saved.size(), options.data(), options.size(),
                             Cancel::get(cancel), callback.progress(), &callback, &out);
    Session session(out);
    return detail::give(callback.finish(status), std::move(session));
  }

  Returned<std::vector<std::uint32_t>> encode(View text, View options = View()) const {
    /* Hardly any text has more tokens than bytes. */
    return detail::array<std::uint32_t>(
        text.size() + 2, [&](std::uint32_t *tokens, std::size_t capacity, std::size_t *count) {
          return mistral_encode(handle_.get(), detail::data(text), text.size(), options.data(), options.size(), tokens,
                                capacity, count);
        });
  }
  Returned<Buffer> decode(TokenView tokens, View options = View()) const {
    return detail::buffer([&](mistral_buf **out) {
      return mistral_decode(handle_.get(), tokens.data(), tokens.size(), options.data(), options.size(), out);
    });
  }

  /* Answers a chat-completions request; the response is JSON like it. */
  Returned<Buffer> chat(View request, const Cancel *cancel = nullptr) const {
    return detail::buffer([&](mistral_buf **out) {
      return mistral_chat(handle_.get(), detail::data(request), request.size(), Cancel::get(cancel), nullptr, nullptr,
                          out);
    });
  }
  /* The same for a request with `"stream": true`: `on_chunk` is given each chunk, a View of JSON. */
  template <class F>
  Returned<Buffer> chat(View request, const Cancel *cancel, F &&on_chunk) const {
    return detail::streamed(on_chunk, [&](mistral_chunk_fn function, void *user_data, mistral_buf **out) {
      return mistral_chat(handle_.get(), detail::data(request), request.size(), Cancel::get(cancel), function,
                          user_data, out);
    });
  }
  /* The tokens that the model reads for a request, and their text. */
  Returned<std::vector<std::uint32_t>> chat_encode(View request, View options = View()) const {
    return detail::array<std::uint32_t>(
        request.size(), [&](std::uint32_t *tokens, std::size_t capacity, std::size_t *count) {
          return mistral_chat_encode(handle_.get(), detail::data(request), request.size(), options.data(),
                                     options.size(), tokens, capacity, count);
        });
  }
  Returned<Buffer> chat_render(View request, View options = View()) const {
    return detail::buffer([&](mistral_buf **out) {
      return mistral_chat_render(handle_.get(), detail::data(request), request.size(), options.data(), options.size(),
                                 out);
    });
  }
  /* What the model has written, as text or as tokens, as a message: JSON. */
  Returned<Buffer> chat_parse(View text, View options = View()) const {
    return detail::buffer([&](mistral_buf **out) {
      return mistral_chat_parse(handle_.get(), detail::data(text), text.size(), nullptr, 0, options.data(),
                                options.size(), out);
    });
  }
  Returned<Buffer> chat_parse(TokenView tokens, View options = View()) const {
    return detail::buffer([&](mistral_buf **out) {
      return mistral_chat_parse(handle_.get(), nullptr, 0, tokens.data(), tokens.size(), options.data(),
                                options.size(), out);
    });
  }
  /* The tokens from which a model of the Codestral family fills the gap between two texts. */
  Returned<std::vector<std::uint32_t>> fim_encode(View prompt, View suffix) const {
    return detail::array<std::uint32_t>(
        prompt.size() + suffix.size() + 4, [&](std::uint32_t *tokens, std::size_t capacity, std::size_t *count) {
          return mistral_fim_encode(handle_.get(), detail::data(prompt), prompt.size(), detail::data(suffix),
                                    suffix.size(), tokens, capacity, count);
        });
  }
  /* One vector for all tokens. */
  Returned<std::vector<float>> embed(TokenView tokens, View options = View(), const Cancel *cancel = nullptr) const {
    return detail::array<float>(0, [&](float *embedding, std::size_t capacity, std::size_t *count) {
      return mistral_embed(handle_.get(), detail::data(tokens), tokens.size(), options.data(), options.size(),
                           Cancel::get(cancel), embedding, capacity, count);
    });
  }
  const mistral_model *get() const noexcept { return handle_.get(); }

 private:
  detail::Owned<mistral_model, mistral_model_free> handle_;
};

/* Verifies the files of a model against a manifest or a signature; the report, as JSON. */
template <class F = const detail::Silent>
Returned<Buffer> verify(View path, View options, const Cancel *cancel = nullptr, F &&on_progress = F()) {
  detail::CallbackOf<F> callback(on_progress);
  mistral_buf *out = nullptr;
  const mistral_status status =
      mistral_verify(detail::data(path), path.size(), detail::data(options), options.size(), Cancel::get(cancel),
                     callback.progress(), &callback, &out);
  Buffer report(out);
  return detail::give(callback.finish(status), std::move(report));
}

/* Verifies an audit log; the report, as JSON. */
template <class F = const detail::Silent>
Returned<Buffer> audit_verify(View path, View options = View(), const Cancel *cancel = nullptr, F &&on_progress = F()) {
  detail::CallbackOf<F> callback(on_progress);
  mistral_buf *out = nullptr;
  const mistral_status status =
      mistral_audit_verify(detail::data(path), path.size(), options.data(), options.size(), Cancel::get(cancel),
                           callback.progress(), &callback, &out);
  Buffer report(out);
  return detail::give(callback.finish(status), std::move(report));
}

}  // namespace MISTRAL_VARIANT
}  // namespace mistral

#endif /* MISTRAL_HPP */
