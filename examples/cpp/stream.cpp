// Continues a text as it comes, until Enter is pressed: stream MODEL [TEXT [MAX_TOKENS]]
#include <mistral.hpp>

#include <iostream>
#include <memory>
#include <string>
#include <thread>

int main(int argc, char **argv) try {
  const std::string text = argc > 2 ? argv[2] : "Once upon a time";
  const std::string options = std::string("{\"max_tokens\": ") + (argc > 3 ? argv[3] : "64") + "}";
  const mistral::Model model = mistral::Model::open(argc > 1 ? argv[1] : "");
  mistral::Session session = model.session();
  const auto cancel = std::make_shared<mistral::Cancel>(mistral::Cancel::create());
  std::thread([cancel] {
    if (std::cin.get() == '\n') cancel->trigger();
  }).detach();
  try {
    for (const mistral::Event &event : session.generation(model.encode(text, "{\"bos\": true}"), options, cancel.get()))
      std::cout << std::string(event.text) << std::flush;
    std::cout << std::endl;
  } catch (const mistral::Error &error) {
    if (error.status() != MISTRAL_E_CANCELLED) throw;
    std::cout << " [stopped]" << std::endl;
  }
} catch (const mistral::Error &error) {
  std::cerr << error.name() << ": " << error.what() << std::endl;
  return 1;
}
