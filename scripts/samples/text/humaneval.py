"""Hand-written problems: a function to complete, followed by its `check`.

The head with its docstring becomes the prompt, the rest of the body the canonical solution.
"""


def count_vowels(text: str) -> int:
    """Return how many of the letters of text are vowels (a, e, i, o, u), small or capital.
    >>> count_vowels("Banana")
    3
    >>> count_vowels("Rhythm")
    0
    """
    return sum(letter in "aeiou" for letter in text.lower())


def check_count_vowels(candidate):
    assert candidate("Banana") == 3
    assert candidate("") == 0
    assert candidate("AEIOU xyz") == 5
    assert candidate("Rhythm") == 0
    assert candidate("queue") == 4


def second_largest(numbers: list[int]) -> int | None:
    """Return the second largest of the different numbers in the list, or None if there are fewer
    than two different numbers.
    >>> second_largest([4, 9, 1, 9])
    4
    >>> second_largest([7, 7])
    """
    different = sorted(set(numbers))
    return different[-2] if len(different) > 1 else None


def check_second_largest(candidate):
    assert candidate([4, 9, 1, 9]) == 4
    assert candidate([7, 7]) is None
    assert candidate([]) is None
    assert candidate([-3, -1, -2]) == -2
    assert candidate([5, 5, 6]) == 5


def interleave(left: list, right: list) -> list:
    """Take elements from left and right in turn, starting with left. When one list is used up, the
    rest of the other one follows.
    >>> interleave([1, 2, 3], ["a"])
    [1, 'a', 2, 3]
    """
    shared = min(len(left), len(right))
    mixed = []
    for i in range(shared):
        mixed.append(left[i])
        mixed.append(right[i])
    return mixed + left[shared:] + right[shared:]


def check_interleave(candidate):
    assert candidate([1, 2, 3], ["a"]) == [1, "a", 2, 3]
    assert candidate([], [1, 2]) == [1, 2]
    assert candidate([1, 3, 5], [2, 4, 6]) == [1, 2, 3, 4, 5, 6]
    assert candidate([0], []) == [0]


def minutes_between(start: str, end: str) -> int:
    """Return how many minutes pass from start to end, two times of a day written as HH:MM. If end
    is earlier than start, it is meant on the next day.
    >>> minutes_between("09:30", "11:00")
    90
    >>> minutes_between("23:50", "00:10")
    20
    """
    minutes = []
    for moment in (start, end):
        hours, rest = moment.split(":")
        minutes.append(int(hours) * 60 + int(rest))
    return (minutes[1] - minutes[0]) % (24 * 60)


def check_minutes_between(candidate):
    assert candidate("09:30", "11:00") == 90
    assert candidate("23:50", "00:10") == 20
    assert candidate("12:00", "12:00") == 0
    assert candidate("00:00", "23:59") == 1439


def longest_run(items: list) -> int:
    """Return the length of the longest stretch of equal neighbours in the list.
    >>> longest_run([1, 1, 2, 2, 2, 3])
    3
    >>> longest_run([])
    0
    """
    best = run = 0
    for i, item in enumerate(items):
        run = run + 1 if i and items[i - 1] == item else 1
        best = max(best, run)
    return best


def check_longest_run(candidate):
    assert candidate([1, 1, 2, 2, 2, 3]) == 3
    assert candidate([]) == 0
    assert candidate([5]) == 1
    assert candidate(list("aabbbb")) == 4
    assert candidate([1, 2, 1, 2]) == 1


def to_roman(number: int) -> str:
    """Write a whole number from 1 to 3999 in Roman numerals.
    >>> to_roman(14)
    'XIV'
    >>> to_roman(1990)
    'MCMXC'
    """
    values = [1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1]
    signs = ["M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"]
    written = ""
    for value, sign in zip(values, signs, strict=True):
        while number >= value:
            written += sign
            number -= value
    return written


def check_to_roman(candidate):
    assert candidate(14) == "XIV"
    assert candidate(1990) == "MCMXC"
    assert candidate(1) == "I"
    assert candidate(3999) == "MMMCMXCIX"
    assert candidate(448) == "CDXLVIII"


def is_anagram(first: str, second: str) -> bool:
    """Tell whether two phrases consist of the same letters, if spaces and case are ignored.
    >>> is_anagram("Dormitory", "dirty room")
    True
    >>> is_anagram("tea", "tee")
    False
    """

    def letters(phrase):
        return sorted(phrase.replace(" ", "").lower())

    return letters(first) == letters(second)


def check_is_anagram(candidate):
    assert candidate("Dormitory", "dirty room") is True
    assert candidate("tea", "tee") is False
    assert candidate("", " ") is True
    assert candidate("aab", "abb") is False


def running_mean(values: list[float], window: int) -> list[float]:
    """Return the mean of every group of `window` neighbouring values, from left to right. The list
    is empty if there are fewer values than that.
    >>> running_mean([1, 2, 3, 4], 2)
    [1.5, 2.5, 3.5]
    """
    groups = len(values) - window + 1
    return [sum(values[i : i + window]) / window for i in range(groups)]


def check_running_mean(candidate):
    assert candidate([1, 2, 3, 4], 2) == [1.5, 2.5, 3.5]
    assert candidate([4, 8], 3) == []
    assert candidate([4, 8], 1) == [4.0, 8.0]
    assert candidate([3, 6, 9], 3) == [6.0]


def flatten(nested: list) -> list:
    """Return all elements of a list of lists of any depth as one flat list, in their order.
    >>> flatten([1, [2, [3, []]], 4])
    [1, 2, 3, 4]
    """
    flat = []
    for item in nested:
        if isinstance(item, list):
            flat.extend(flatten(item))
        else:
            flat.append(item)
    return flat


def check_flatten(candidate):
    assert candidate([1, [2, [3, []]], 4]) == [1, 2, 3, 4]
    assert candidate([]) == []
    assert candidate([[[["deep"]]]]) == ["deep"]
    assert candidate([1, 2]) == [1, 2]


def change_coins(amount: int, coins: list[int]) -> int:
    """Return the smallest number of coins that make up the amount, each kind of coin being
    available without limit, or -1 if it cannot be done.
    >>> change_coins(6, [1, 3, 4])
    2
    >>> change_coins(7, [5])
    -1
    """
    fewest = [0] + [amount + 1] * amount
    for total in range(1, amount + 1):
        for coin in coins:
            if coin <= total:
                fewest[total] = min(fewest[total], fewest[total - coin] + 1)
    return fewest[amount] if fewest[amount] <= amount else -1


def check_change_coins(candidate):
    assert candidate(6, [1, 3, 4]) == 2
    assert candidate(7, [5]) == -1
    assert candidate(0, [2]) == 0
    assert candidate(30, [25, 10, 1]) == 3


def title_case(sentence: str) -> str:
    """Write the first letter of every word as a capital and the others small, but leave the words
    "of", "the" and "and" small unless they come first. Words are separated by single spaces.
    >>> title_case("the lord OF the flies")
    'The Lord of the Flies'
    """
    titled = []
    for i, word in enumerate(sentence.lower().split(" ")):
        keep_small = i > 0 and word in ("of", "the", "and")
        titled.append(word if keep_small else word.capitalize())
    return " ".join(titled)


def check_title_case(candidate):
    assert candidate("the lord OF the flies") == "The Lord of the Flies"
    assert candidate("salt and pepper") == "Salt and Pepper"
    assert candidate("of mice") == "Of Mice"
    assert candidate("") == ""


def transpose(matrix: list[list[int]]) -> list[list[int]]:
    """Turn the rows of a matrix into columns.
    >>> transpose([[1, 2, 3], [4, 5, 6]])
    [[1, 4], [2, 5], [3, 6]]
    """
    return [list(column) for column in zip(*matrix, strict=True)]


def check_transpose(candidate):
    assert candidate([[1, 2, 3], [4, 5, 6]]) == [[1, 4], [2, 5], [3, 6]]
    assert candidate([[7]]) == [[7]]
    assert candidate([[1], [2]]) == [[1, 2]]
    assert candidate([]) == []


def digit_sum_until_one(number: int) -> int:
    """Add up the decimal digits of a number that is not negative, then the digits of the sum, and
    so on until one digit is left. Return that digit.
    >>> digit_sum_until_one(987)
    6
    """
    while number > 9:
        number = sum(int(digit) for digit in str(number))
    return number


def check_digit_sum_until_one(candidate):
    assert candidate(987) == 6
    assert candidate(0) == 0
    assert candidate(10) == 1
    assert candidate(99999) == 9


def most_common_word(text: str) -> str:
    """Return the word that occurs most often in the text, in small letters. Words are separated by
    spaces. If several words are equally frequent, the first one in the text is returned.
    >>> most_common_word("Red fish blue fish")
    'fish'
    """
    words = text.lower().split()
    return max(words, key=words.count)


def check_most_common_word(candidate):
    assert candidate("Red fish blue fish") == "fish"
    assert candidate("one two") == "one"
    assert candidate("b a a b") == "b"
    assert candidate("Sun sun moon") == "sun"


def prime_factors(number: int) -> list[int]:
    """Return the prime factors of a whole number larger than 1, smallest first, with repetitions.
    >>> prime_factors(60)
    [2, 2, 3, 5]
    """
    factors = []
    divisor = 2
    while number > 1:
        if number % divisor:
            divisor += 1
        else:
            factors.append(divisor)
            number //= divisor
    return factors


def check_prime_factors(candidate):
    assert candidate(60) == [2, 2, 3, 5]
    assert candidate(13) == [13]
    assert candidate(1024) == [2] * 10
    assert candidate(77) == [7, 11]


def balanced(text: str) -> bool:
    """Tell whether all brackets (), [] and {} in the text are closed in the right order. Other
    characters do not matter.
    >>> balanced("f(a[1], {b})")
    True
    >>> balanced("(]")
    False
    """
    partners = {")": "(", "]": "[", "}": "{"}
    waiting = []
    for sign in text:
        if sign in partners.values():
            waiting.append(sign)
        elif sign in partners and (not waiting or waiting.pop() != partners[sign]):
            return False
    return not waiting


def check_balanced(candidate):
    assert candidate("f(a[1], {b})") is True
    assert candidate("(]") is False
    assert candidate("") is True
    assert candidate("((") is False
    assert candidate("}{") is False


def merge_ranges(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merge ranges (start, end) that overlap or touch, and return them sorted by their start.
    >>> merge_ranges([(5, 8), (1, 3), (2, 4)])
    [(1, 4), (5, 8)]
    """
    merged = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def check_merge_ranges(candidate):
    assert candidate([(5, 8), (1, 3), (2, 4)]) == [(1, 4), (5, 8)]
    assert candidate([]) == []
    assert candidate([(1, 10), (2, 3)]) == [(1, 10)]
    assert candidate([(1, 2), (2, 3)]) == [(1, 3)]


def shift_letters(text: str, steps: int) -> str:
    """Move every letter from a to z by so many steps through the alphabet, from z on to a again.
    All other characters stay as they are.
    >>> shift_letters("xyz!", 2)
    'zab!'
    """
    shifted = ""
    for sign in text:
        if "a" <= sign <= "z":
            shifted += chr((ord(sign) - ord("a") + steps) % 26 + ord("a"))
        else:
            shifted += sign
    return shifted


def check_shift_letters(candidate):
    assert candidate("xyz!", 2) == "zab!"
    assert candidate("hello", 0) == "hello"
    assert candidate("abc", -1) == "zab"
    assert candidate("A b", 27) == "A c"


def group_by_length(words: list[str]) -> dict[int, list[str]]:
    """Sort words into groups by their length. Inside of a group the words keep their order.
    >>> group_by_length(["to", "tea", "at"])
    {2: ['to', 'at'], 3: ['tea']}
    """
    groups = {}
    for word in words:
        groups.setdefault(len(word), []).append(word)
    return groups


def check_group_by_length(candidate):
    assert candidate(["to", "tea", "at"]) == {2: ["to", "at"], 3: ["tea"]}
    assert candidate([]) == {}
    assert candidate(["", "a"]) == {0: [""], 1: ["a"]}


def stairs(height: int) -> list[str]:
    """Draw stairs of hash signs that rise to the right, as a list of lines of equal length.
    >>> stairs(3)
    ['  #', ' ##', '###']
    """
    return ["#".rjust(height - step, " ") + "#" * step for step in range(height)]


def check_stairs(candidate):
    assert candidate(3) == ["  #", " ##", "###"]
    assert candidate(1) == ["#"]
    assert candidate(0) == []


def best_trade(prices: list[int]) -> int:
    """Return the largest profit from buying once and selling once later, given the prices of the
    days in order, or 0 if there is no profit to be made.
    >>> best_trade([7, 2, 5, 1, 4])
    3
    """
    profit = 0
    cheapest = None
    for price in prices:
        cheapest = price if cheapest is None else min(cheapest, price)
        profit = max(profit, price - cheapest)
    return profit


def check_best_trade(candidate):
    assert candidate([7, 2, 5, 1, 4]) == 3
    assert candidate([]) == 0
    assert candidate([9, 8, 7]) == 0
    assert candidate([1, 10, 2, 12]) == 11


def remove_repeats(items: list) -> list:
    """Return the list without the elements that have occurred in it before.
    >>> remove_repeats([3, 1, 3, 2, 1])
    [3, 1, 2]
    """
    return list(dict.fromkeys(items))


def check_remove_repeats(candidate):
    assert candidate([3, 1, 3, 2, 1]) == [3, 1, 2]
    assert candidate([]) == []
    assert candidate(["a", "A", "a"]) == ["a", "A"]


def count_islands(rows: list[str]) -> int:
    """Count the islands on a map whose rows are made of "." for water and "x" for land. Land
    squares belong together if they share a side.
    >>> count_islands(["xx..", "...x", "x..x"])
    3
    """
    land = {(r, c) for r, row in enumerate(rows) for c, sign in enumerate(row) if sign == "x"}
    islands = 0
    while land:
        islands += 1
        shore = [land.pop()]
        while shore:
            r, c = shore.pop()
            for square in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
                if square in land:
                    land.remove(square)
                    shore.append(square)
    return islands


def check_count_islands(candidate):
    assert candidate(["xx..", "...x", "x..x"]) == 3
    assert candidate([]) == 0
    assert candidate(["..."]) == 0
    assert candidate(["x.x", "xxx"]) == 1


def is_leap_year(year: int) -> bool:
    """Tell whether a year of the Gregorian calendar is a leap year.
    >>> is_leap_year(2024)
    True
    >>> is_leap_year(1900)
    False
    """
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def check_is_leap_year(candidate):
    assert candidate(2024) is True
    assert candidate(1900) is False
    assert candidate(2000) is True
    assert candidate(2023) is False


def compress(text: str) -> str:
    """Replace every stretch of the same character by the character and the length of the stretch.
    If the result is not shorter than the text, return the text.
    >>> compress("aaaabb")
    'a4b2'
    >>> compress("abc")
    'abc'
    """
    from itertools import groupby

    packed = "".join(f"{sign}{len(list(run))}" for sign, run in groupby(text))
    return packed if len(packed) < len(text) else text


def check_compress(candidate):
    assert candidate("aaaabb") == "a4b2"
    assert candidate("abc") == "abc"
    assert candidate("") == ""
    assert candidate("aa") == "aa"
    assert candidate("zzzzzzzzzzzz") == "z12"
