// Text -> instructions.
#include <bit>
#include <cctype>
#include <charconv>

#include "program.h"

namespace fake_gpu::ptx {
namespace {

std::invalid_argument not_understood(std::string_view what, std::string_view text) {
  return std::invalid_argument("the PTX machine does not understand " + std::string(what) + ": " + std::string(text));
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && std::isspace(text.front())) text.remove_prefix(1);
  while (!text.empty() && std::isspace(text.back())) text.remove_suffix(1);
  return text;
}

// Without comments, which end a line in what nvcc and LLVM write.
std::string without_comments(std::string_view text) {
  std::string rest;
  rest.reserve(text.size());
  for (size_t at = 0; at < text.size(); ++at) {
    if (text.substr(at, 2) == "//") at = std::min(text.find('\n', at), text.size() - 1);
    rest += text[at];
  }
  return rest;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  size_t begin = 0;
  int depth = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    if (text[at] == '{' || text[at] == '[' || text[at] == '(') ++depth;
    if (text[at] == '}' || text[at] == ']' || text[at] == ')') --depth;
    if (text[at] != separator || depth) continue;
    parts.push_back(trimmed(text.substr(begin, at - begin)));
    begin = at + 1;
  }
  if (!trimmed(text.substr(begin)).empty()) parts.push_back(trimmed(text.substr(begin)));
  return parts;
}

// Bytes of a lane: of a type's name, such as "s64", "pred" or "bf16x2".
int bytes_of_type(std::string_view type) {
  if (type == "pred" || type == "tf32" || type == "bf16x2" || type == "f16x2") return 4;
  const size_t digits = type.find_first_of("0123456789");
  if (digits == std::string_view::npos || digits > 2) return 0;
  const auto bits = type.substr(digits);
  return bits == "64" ? 8 : bits == "32" ? 4 : bits == "16" ? 2 : bits == "8" ? 1 : 0;
}

int bytes_of_last_type(const std::string& opcode) {
  int bytes = 4;
  for (const auto part : split(opcode, '.'))
    if (const int found = bytes_of_type(part)) bytes = found;
  return bytes;
}

bool begins_with(std::string_view text, std::string_view what) { return text.substr(0, what.size()) == what; }

// How many bytes of a lane an immediate value of that operand has.
int bytes_of_immediate(const std::string& opcode, size_t operand) {
  const bool is_shift = begins_with(opcode, "shl.") || begins_with(opcode, "shr.");
  const bool is_field = begins_with(opcode, "bfe.") || begins_with(opcode, "bfi.");
  if ((is_shift && operand == 2) || (is_field && operand >= 2 && opcode != "bfi.b64")) return 4;
  if (begins_with(opcode, "selp.") && operand == 3) return 4;
  const int bytes = bytes_of_last_type(opcode);
  if (begins_with(opcode, "mad.wide.") && operand == 3) return 2 * bytes;
  return bytes;
}

// Of symbols in shared memory, or among the parameters.
using Places = std::map<std::string, uint32_t, std::less<>>;

struct Register {
  uint32_t at;
  int bytes;
};

class Body {
 public:
  Body(Kernel& kernel, const Places& shared, const Places& parameters, const std::map<int, std::string>& files)
      : kernel_(kernel), files_(files), symbols_(shared), scopes_(1) {
    symbols_.insert(parameters.begin(), parameters.end());
  }

  void parse(std::string_view text) {
    for (size_t at = 0; at < text.size();) {
      const char next = text[at];
      if (std::isspace(next) || next == ';') {
        ++at;
      } else if (next == '{') {
        scopes_.emplace_back(), ++at;
      } else if (next == '}') {
        scopes_.pop_back(), ++at;
      } else if (begins_with(text.substr(at), ".loc")) {
        const size_t end = text.find('\n', at);
        set_line(text.substr(at, end - at));
        at = end;
      } else {
        const size_t end = text.find_first_of(":;", at);
        // a label's colon; those of ".shared::cta" come in pairs
        if (end != std::string_view::npos && text[end] == ':' && text[end + 1] != ':' &&
            text.substr(at, end - at).find_first_of(" \t\n") == std::string_view::npos) {
          labels_[std::string(text.substr(at, end - at))] = int(kernel_.code.size());
          at = end + 1;
        } else {
          const size_t last = text.find(';', at);
          statement(trimmed(text.substr(at, last - at)));
          at = last + 1;
        }
      }
    }
    for (const auto& [number, label] : jumps_) {
      const auto found = labels_.find(label);
      if (found == labels_.end()) throw not_understood("a label", label);
      kernel_.code[size_t(number)].target = found->second;
    }
    Instruction end;
    end.ends = true;
    end.opcode = end.text = "ret";
    kernel_.code.push_back(end);
  }

 private:
  // ".loc 1 487 0", and where it is inlined at: "file:line".
  void set_line(std::string_view text) {
    const std::string words(text.substr(4));
    int file = 0, line = 0;
    if (std::sscanf(words.c_str(), " %d %d", &file, &line) == 2)
      line_ = (files_.contains(file) ? files_.at(file) : std::to_string(file)) + ":" + std::to_string(line);
  }

  void statement(std::string_view text) {
    if (begins_with(text, ".reg"))
      declare(text);
    else if (!begins_with(text, ".pragma") && !begins_with(text, ".shared"))  // which is declared already
      kernel_.code.push_back(instruction(text));
  }

  void declare(std::string_view text) {
    const size_t type = text.find('.', 1), names = text.find_first_of(" \t", type);
    const int bytes = std::max(4, bytes_of_type(text.substr(type + 1, names - type - 1)));
    for (const auto name : split(text.substr(names), ',')) {
      const size_t angle = name.find('<');
      if (angle == std::string_view::npos) {
        declare(std::string(name), bytes);
      } else {
        const int count = std::atoi(std::string(name.substr(angle + 1)).c_str());
        for (int i = 0; i < count; ++i) declare(std::string(name.substr(0, angle)) + std::to_string(i), bytes);
      }
    }
  }

  Register declare(const std::string& name, int bytes) {
    const Register found{uint32_t(kernel_.register_bytes), bytes};
    kernel_.register_bytes += size_t(lanes * bytes);
    return scopes_.back()[name] = found;
  }

  const Register* find(std::string_view name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
      if (const auto found = scope->find(name); found != scope->end()) return &found->second;
    return nullptr;
  }

  Instruction instruction(std::string_view text) {
    Instruction made;
    made.text = std::string(text);
    made.line = line_;
    if (text.front() == '@') {
      const size_t end = text.find_first_of(" \t");
      made.is_guarded = true;
      made.is_negated = text[1] == '!';
      made.guard = value(text.substr(1 + made.is_negated, end - 1 - made.is_negated), 4);
      text = trimmed(text.substr(end));
    }
    const size_t end = std::min(text.find_first_of(" \t\n"), text.size());
    made.opcode = std::string(text.substr(0, end));
    const auto operands = split(text.substr(end), ',');
    if (begins_with(made.opcode, "bra")) {
      jumps_.emplace_back(int(kernel_.code.size()), std::string(operands.at(0)));
      return made;
    }
    if (made.opcode == "ret" || made.opcode == "exit") {
      made.ends = true;
      return made;
    }
    std::vector<size_t> shape;  // how many values stand for an operand
    std::string_view second;    // of two results, "first|second"; it comes last
    for (size_t i = 0; i < operands.size(); ++i) {
      auto operand = operands[i];
      if (const size_t bar = operand.find('|'); bar != std::string_view::npos) {
        second = operand.substr(bar + 1);
        operand = operand.substr(0, bar);
      }
      const int bytes = bytes_of_immediate(made.opcode, i);
      if (operand.front() == '{') {
        const auto listed = split(operand.substr(1, operand.size() - 2), ',');
        for (const auto each : listed) made.operands.push_back(value(each, bytes));
        shape.push_back(listed.size());
      } else if (operand.front() == '[') {
        address(trimmed(operand.substr(1, operand.size() - 2)), made);
        shape.push_back(1);
      } else {
        made.operands.push_back(value(operand, bytes));
        shape.push_back(1);
      }
    }
    if (!second.empty()) made.operands.push_back(value(second, 4));
    if (begins_with(made.opcode, "mov.") && shape.size() == 2 && (shape[0] > 1 || shape[1] > 1))
      made.opcode += shape[0] > 1 ? ".unpack" : ".pack";
    for (const auto of : {arithmetic_of, memory_of, tensor_cores_of})
      if (!made.operation) made.operation = of(made.opcode, made);
    if (!made.operation) throw not_understood("an instruction", made.text);
    return made;
  }

  // Where an operand is an address, a number is what is added to it.
  void address(std::string_view text, Instruction& made) {
    const size_t plus = text.find('+');
    made.operands.push_back(value(trimmed(text.substr(0, plus)), 4));
    made.numbers.push_back(plus == std::string_view::npos ? 0 : integer(trimmed(text.substr(plus + 1))));
  }

  static int64_t integer(std::string_view text) {
    const bool is_negative = text.front() == '-';
    std::string_view digits = text.substr(is_negative);
    if (digits.size() && digits.back() == 'U') digits.remove_suffix(1);
    const int base = begins_with(digits, "0x") ? 16 : 10;
    if (base == 16) digits.remove_prefix(2);
    uint64_t found = 0;
    const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), found, base);
    if (read.ec != std::errc() || read.ptr != digits.data() + digits.size()) throw not_understood("a number", text);
    return is_negative ? -int64_t(found) : int64_t(found);
  }

  Operand value(std::string_view text, int bytes) {
    if (const Register* const found = find(text)) return {found->at, false, uint8_t(found->bytes)};
    if (text == "_") return {declare("_", 8).at, false, uint8_t(bytes == 8 ? 8 : 4)};  // nobody wants it
    if (text.front() == '%') {
      const std::string name(text);
      if (!kernel_.special.contains(name)) kernel_.special[name] = {declare(name, 4).at};
      return kernel_.special[name];
    }
    if (const auto symbol = symbols_.find(text); symbol != symbols_.end()) return constant(symbol->second, bytes);
    if (begins_with(text, "0f") || begins_with(text, "0d")) {
      const auto bits = integer("0x" + std::string(text.substr(2)));
      return constant(uint64_t(bits), text[1] == 'd' ? 8 : 4);
    }
    if (std::isdigit(text.front()) || text.front() == '-') return constant(uint64_t(integer(text)), bytes);
    throw not_understood("an operand", text);
  }

  Operand constant(uint64_t bits, int bytes) {
    const bool is_wide = bytes == 8;
    if (bytes == 2) bits &= 0xffff;
    const auto [found, is_new] = constants_.try_emplace({bits, is_wide}, uint32_t(4 * kernel_.constants.size()));
    if (is_new)
      for (int lane = 0; lane < lanes; ++lane) {
        kernel_.constants.push_back(uint32_t(bits));
        if (is_wide) kernel_.constants.push_back(uint32_t(bits >> 32));
      }
    return {found->second, true, uint8_t(is_wide ? 8 : 4)};
  }

  Kernel& kernel_;
  const std::map<int, std::string>& files_;
  std::string line_;
  Places symbols_;
  std::vector<std::map<std::string, Register, std::less<>>> scopes_;
  std::map<std::string, int> labels_;
  std::vector<std::pair<int, std::string>> jumps_;
  std::map<std::pair<uint64_t, bool>, uint32_t> constants_;
};

// The end of what begins with a bracket at `at`: behind the one that closes it.
size_t closed(std::string_view text, size_t at) {
  const char open = text[at], close = open == '{' ? '}' : ')';
  int depth = 0;
  for (; at < text.size(); ++at) {
    if (text[at] == open) ++depth;
    if (text[at] == close && --depth == 0) return at + 1;
  }
  throw not_understood("brackets", "one is not closed");
}

size_t rounded_up(size_t size, size_t to) { return (size + to - 1) / to * to; }

// ".align 8 .b8 name[24]" or ".u64 .ptr .global .align 1 name": alignment, bytes, name.
struct Declared {
  size_t alignment = 1, bytes = 0;
  std::string name;
};

Declared declared(std::string_view text) {
  Declared found;
  size_t element = 1;
  const size_t bracket = text.find('[');
  std::vector<std::string> words;
  std::string word;
  for (const char each : std::string(text.substr(0, bracket)) + " ") {
    if (!std::isspace(each)) {
      word += each;
    } else if (!word.empty()) {
      words.push_back(word);
      word.clear();
    }
  }
  bool is_pointer = false;
  for (size_t i = 0; i + 1 < words.size(); ++i) {
    if (words[i] == ".ptr") is_pointer = true;  // whose alignment is that of what it points to
    if (words[i] == ".align" && !is_pointer) found.alignment = size_t(std::stoi(words[i + 1]));
    if (const int bytes = bytes_of_type(words[i].substr(1)); words[i][0] == '.' && bytes) element = size_t(bytes);
  }
  found.name = words.back();
  found.alignment = std::max(found.alignment, element);
  const auto count = bracket == std::string_view::npos ? "1" : text.substr(bracket + 1, text.find(']') - bracket - 1);
  found.bytes = element * (trimmed(count).empty() ? 0 : size_t(std::stoul(std::string(count))));
  return found;
}

// ".shared .align 4 .b8 name[5120]" behind the `bytes` that others take.
void place(std::string_view statement, Places& places, size_t& bytes) {
  const Declared found = declared(statement.substr(7));
  bytes = rounded_up(bytes, found.alignment);
  places[found.name] = uint32_t(bytes);
  bytes += found.bytes;
}

// ".file 1 \"folder/name\"": names of the sources, without their folders, by number.
std::map<int, std::string> files_of(std::string_view text) {
  std::map<int, std::string> files;
  for (size_t at = text.find(".file"); at != std::string_view::npos; at = text.find(".file", at + 1)) {
    const size_t end = text.find('\n', at + 1), close = text.rfind('"', end), slash = text.rfind('/', close);
    const size_t open = text.rfind('"', close - 1);
    const size_t begin = (slash == std::string_view::npos || slash < open ? open : slash) + 1;
    files[std::atoi(std::string(text.substr(at + 5, 10)).c_str())] = std::string(text.substr(begin, close - begin));
  }
  return files;
}

}  // namespace

std::map<std::string, std::shared_ptr<const Kernel>> parse(std::string_view commented) {
  const std::string whole = without_comments(commented);
  const std::string_view text = whole;
  std::map<std::string, std::shared_ptr<const Kernel>> kernels;
  Places shared;
  std::vector<std::string> dynamic;
  size_t shared_bytes = 0;
  const auto files = files_of(text);
  for (size_t at = 0; at < text.size();) {
    if (std::isspace(text[at]) || text[at] == ';') {
      ++at;
      continue;
    }
    const auto rest = text.substr(at);
    const size_t entry =
        begins_with(rest, ".visible .entry") || begins_with(rest, ".entry") || begins_with(rest, ".weak .entry")
            ? rest.find(".entry") + 6
            : std::string_view::npos;
    if (entry != std::string_view::npos) {
      auto kernel = std::make_shared<Kernel>();
      const size_t open = text.find('(', at);
      kernel->name = std::string(trimmed(text.substr(at + entry, open - at - entry)));
      const size_t close = closed(text, open);
      Places parameters;
      for (const auto each : split(text.substr(open + 1, close - open - 2), ',')) {
        const Declared found = declared(each);
        kernel->parameter_bytes = rounded_up(kernel->parameter_bytes, found.alignment);
        parameters[found.name] = uint32_t(kernel->parameter_bytes);
        kernel->parameters.push_back({kernel->parameter_bytes, found.bytes});
        kernel->parameter_bytes += found.bytes;
      }
      const size_t begin = text.find('{', close), end = closed(text, begin);
      const auto body = text.substr(begin + 1, end - begin - 2);
      auto own = shared;
      kernel->static_shared_bytes = shared_bytes;
      for (size_t found = body.find(".shared .align"); found != std::string_view::npos;
           found = body.find(".shared .align", found + 1))
        place(body.substr(found, body.find(';', found) - found), own, kernel->static_shared_bytes);
      // Dynamic shared memory begins behind what is declared.
      kernel->static_shared_bytes = rounded_up(kernel->static_shared_bytes, dynamic.empty() ? 1 : 1024);
      for (const auto& name : dynamic) own[name] = uint32_t(kernel->static_shared_bytes);
      Body(*kernel, own, parameters, files).parse(body);
      kernels[kernel->name] = kernel;
      at = end;
    } else if (begins_with(rest, ".section")) {
      at = closed(text, text.find('{', at));
    } else if (begins_with(rest, ".version") || begins_with(rest, ".target") || begins_with(rest, ".address_size") ||
               begins_with(rest, ".file")) {
      at = std::min(text.find('\n', at), text.size());
    } else {
      const size_t end = text.find(';', at);
      const auto statement = trimmed(text.substr(at, end - at));
      if (begins_with(statement, ".extern .shared")) {
        dynamic.push_back(declared(statement.substr(15)).name);
      } else if (begins_with(statement, ".shared")) {
        place(statement, shared, shared_bytes);
      } else if (!begins_with(statement, ".global") && !begins_with(statement, ".extern")) {  // which no kernel reads
        throw not_understood("a declaration", statement);
      }
      at = end + 1;
    }
  }
  return kernels;
}

}  // namespace fake_gpu::ptx
