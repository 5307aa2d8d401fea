"""Hand-written functions: what each does, ways to ask for it (separated by |), and examples."""

import math
import re
from collections import Counter


def mean(numbers):
    """Returns the mean of a list of numbers.
    Write a function that calculates the average of a list. | How do I get the mean of some numbers?
    >>> mean([2, 4, 9])
    5.0
    """
    return sum(numbers) / len(numbers)


def is_even(number):
    """Tells whether a number is even.
    Create a Python function to check if a number is even. | Write is_even(number).
    >>> is_even(10)
    True
    >>> is_even(7)
    False
    """
    return number % 2 == 0


def reverse_words(sentence):
    """Returns the words of a sentence in reverse order.
    Reverse the order of the words in a sentence. | Write code that turns "a b c" into "c b a".
    >>> reverse_words("good morning dear moon")
    'moon dear morning good'
    """
    return " ".join(sentence.split()[::-1])


def celsius_to_fahrenheit(celsius):
    """Converts a temperature from degrees Celsius to degrees Fahrenheit.
    Convert Celsius to Fahrenheit in Python. | Write a function for turning Celsius into Fahrenheit.
    >>> celsius_to_fahrenheit(100)
    212.0
    """
    return celsius * 9 / 5 + 32


def factorial(n):
    """Returns the product of all whole numbers from 1 to n.
    Write a loop that computes n factorial. | Implement factorial(n) without recursion.
    >>> factorial(5)
    120
    >>> factorial(0)
    1
    """
    result = 1
    for i in range(2, n + 1):
        result *= i
    return result


def fibonacci(n):
    """Returns the first n Fibonacci numbers, beginning with 0 and 1.
    List the first n Fibonacci numbers. | Write a function that returns a list of Fibonacci numbers.
    >>> fibonacci(7)
    [0, 1, 1, 2, 3, 5, 8]
    """
    numbers = []
    a, b = 0, 1
    for _ in range(n):
        numbers.append(a)
        a, b = b, a + b
    return numbers


def is_palindrome(text):
    """Tells whether a text reads the same from both ends.
    Check whether a string is a palindrome. | Is the string the same when reversed? Write the test.
    >>> is_palindrome("level")
    True
    >>> is_palindrome("leaf")
    False
    """
    return text == text[::-1]


def count_words(text):
    """Counts how often every word occurs in a text.
    Count the words of a text with a dictionary. | Write a word counter that ignores case.
    >>> count_words("Red red blue")
    {'red': 2, 'blue': 1}
    """
    counts = {}
    for word in text.lower().split():
        counts[word] = counts.get(word, 0) + 1
    return counts


def bubble_sort(items):
    """Returns a sorted copy of a list by swapping neighbours that are out of order.
    Implement bubble sort. | Sort a list in Python without using sort or sorted.
    >>> bubble_sort([5, 2, 9, 1])
    [1, 2, 5, 9]
    """
    items = list(items)
    for end in range(len(items) - 1, 0, -1):
        for i in range(end):
            if items[i] > items[i + 1]:
                items[i], items[i + 1] = items[i + 1], items[i]
    return items


def binary_search(items, wanted):
    """Returns the position of a value in a sorted list, or -1 if it is not there.
    Write a binary search. | Find a value in a sorted list in logarithmic time.
    >>> binary_search([1, 4, 6, 9, 12], 9)
    3
    >>> binary_search([1, 4, 6], 5)
    -1
    """
    low, high = 0, len(items) - 1
    while low <= high:
        middle = (low + high) // 2
        if items[middle] == wanted:
            return middle
        if items[middle] < wanted:
            low = middle + 1
        else:
            high = middle - 1
    return -1


def gcd(a, b):
    """Returns the greatest common divisor of two whole numbers by Euclid's algorithm.
    Write Euclid's algorithm. | Compute the greatest common divisor of two numbers.
    >>> gcd(48, 36)
    12
    """
    while b:
        a, b = b, a % b
    return a


def is_prime(n):
    """Tells whether a whole number is prime.
    Write a function that tests if a number is prime. | Check for primes by trial division.
    >>> [n for n in range(12) if is_prime(n)]
    [2, 3, 5, 7, 11]
    """
    if n < 2:
        return False
    return all(n % divisor for divisor in range(2, math.isqrt(n) + 1))


def unique(items):
    """Returns the items of a list without repetitions, in the order in which they first occur.
    Remove duplicates from a list but keep the order. | Write a function that drops repeated items.
    >>> unique([3, 1, 3, 2, 1])
    [3, 1, 2]
    """
    seen = set()
    kept = []
    for item in items:
        if item not in seen:
            seen.add(item)
            kept.append(item)
    return kept


def squares(n):
    """Returns the squares of the numbers from 1 to n.
    Use a list comprehension to make the first n squares. | Generate a list of square numbers.
    >>> squares(4)
    [1, 4, 9, 16]
    """
    return [i * i for i in range(1, n + 1)]


def longest_word(words):
    """Returns the longest word of a list, the first one if several are equally long.
    Find the longest string in a list. | Given a list of words, return the one with most letters.
    >>> longest_word(["pea", "carrot", "leek"])
    'carrot'
    """
    return max(words, key=len)


def invert(mapping):
    """Swaps the keys and the values of a dictionary.
    Write code that inverts a dictionary. | How can I swap keys and values of a dict?
    >>> invert({"a": 1, "b": 2})
    {1: 'a', 2: 'b'}
    """
    return {value: key for key, value in mapping.items()}


def chunks(items, size):
    """Cuts a list into parts of a given size; the last part may be shorter.
    Split a list into chunks of n elements. | Write chunks(items, size) for lists.
    >>> chunks([1, 2, 3, 4, 5], 2)
    [[1, 2], [3, 4], [5]]
    """
    return [items[i : i + size] for i in range(0, len(items), size)]


def to_binary(n):
    """Writes a whole number that is not negative with binary digits.
    Convert a decimal number to binary without bin(). | Write a function that returns binary digits.
    >>> to_binary(10)
    '1010'
    """
    digits = ""
    while n > 0:
        digits = str(n % 2) + digits
        n //= 2
    return digits or "0"


def circle_area(radius):
    """Returns the area of a circle, rounded to two decimals.
    Calculate the area of a circle from its radius. | Write a function for the area of a circle.
    >>> circle_area(2)
    12.57
    """
    return round(math.pi * radius**2, 2)


def count_letter(text, letter):
    """Counts how often a letter occurs in a text, small or capital.
    Count how many times a letter appears in a string. | Write a case-insensitive letter counter.
    >>> count_letter("Anna and Alan", "a")
    5
    """
    return text.lower().count(letter.lower())


def common_items(first, second):
    """Returns the items that two lists share, sorted.
    Find the intersection of two lists. | Which elements are in both lists? Return them sorted.
    >>> common_items([1, 2, 3, 4], [3, 4, 5])
    [3, 4]
    """
    return sorted(set(first) & set(second))


def power(base, exponent):
    """Raises a number to a power that is a whole number and not negative, by repeated squaring.
    Implement fast exponentiation. | Write power(base, exponent) with few multiplications.
    >>> power(3, 5)
    243
    """
    result = 1
    while exponent > 0:
        if exponent % 2 == 1:
            result *= base
        base *= base
        exponent //= 2
    return result


def valid_email(address):
    """Tells whether a text looks like an e-mail address.
    Write a regular expression check for e-mail addresses. | Validate an e-mail address in Python.
    >>> valid_email("ada@example.org")
    True
    >>> valid_email("ada at example")
    False
    """
    return re.fullmatch(r"[\w.+-]+@[\w-]+(\.[\w-]+)+", address) is not None


def most_common(items):
    """Returns the item that occurs most often in a list.
    Find the mode of a list with collections.Counter. | Return the most frequent element.
    >>> most_common(["tea", "milk", "tea"])
    'tea'
    """
    return Counter(items).most_common(1)[0][0]


def rotate(items, steps):
    """Moves every item of a list to the left by some steps; what falls out comes back at the end.
    Rotate a list to the left by k positions. | Write a function that shifts a list in a circle.
    >>> rotate([1, 2, 3, 4, 5], 2)
    [3, 4, 5, 1, 2]
    """
    steps %= len(items)
    return items[steps:] + items[:steps]


def insertion_sort(items):
    """Returns a sorted copy of a list by inserting every item at its place among the sorted ones.
    Implement insertion sort. | Show me insertion sort in Python.
    >>> insertion_sort([4, 1, 3])
    [1, 3, 4]
    """
    done = []
    for item in items:
        position = len(done)
        while position > 0 and done[position - 1] > item:
            position -= 1
        done.insert(position, item)
    return done


def quick_sort(items):
    """Returns a sorted copy of a list by splitting it around one of its items.
    Write quicksort. | Sort a list recursively around a pivot.
    >>> quick_sort([6, 3, 8, 3])
    [3, 3, 6, 8]
    """
    if len(items) < 2:
        return list(items)
    pivot, *rest = items
    smaller = [item for item in rest if item < pivot]
    larger = [item for item in rest if item >= pivot]
    return [*quick_sort(smaller), pivot, *quick_sort(larger)]


def initials(name):
    """Returns the first letters of the parts of a name, as capitals with dots.
    Turn a full name into initials. | Write a function that abbreviates names like "Ada Lovelace".
    >>> initials("ada king lovelace")
    'A. K. L.'
    """
    return " ".join(part[0].upper() + "." for part in name.split())


def multiply_matrices(left, right):
    """Multiplies two matrices that are given as lists of rows.
    Multiply two matrices without numpy. | Write matrix multiplication with nested lists.
    >>> multiply_matrices([[1, 2], [3, 4]], [[5], [6]])
    [[17], [39]]
    """
    columns = list(zip(*right, strict=True))
    return [
        [sum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in left
    ]


def clamp(value, low, high):
    """Limits a number to a range.
    Write clamp(value, low, high). | Restrict a number to lie between two bounds.
    >>> clamp(15, 0, 10)
    10
    >>> clamp(-3, 0, 10)
    0
    """
    return max(low, min(value, high))


def median(numbers):
    """Returns the middle value of a list of numbers, or the mean of the two in the middle.
    Calculate the median of a list. | Write a median function that handles lists of even length.
    >>> median([7, 1, 3])
    3
    >>> median([4, 1, 3, 2])
    2.5
    """
    ordered = sorted(numbers)
    middle = len(ordered) // 2
    if len(ordered) % 2 == 1:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def pairs_with_sum(numbers, total):
    """Returns all pairs of different positions' values that add up to a total.
    Find all pairs in a list that sum to a target. | Which two numbers add up to the given total?
    >>> pairs_with_sum([1, 4, 2, 3], 5)
    [(1, 4), (2, 3)]
    """
    pairs = []
    for i, first in enumerate(numbers):
        for second in numbers[i + 1 :]:
            if first + second == total:
                pairs.append((first, second))
    return pairs


def snake_case(name):
    """Turns a name in camel case into snake case.
    Convert camelCase to snake_case. | Use a regular expression to rename camel case identifiers.
    >>> snake_case("maxRetryCount")
    'max_retry_count'
    """
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def multiplication_table(n):
    """Returns the multiplication table from 1 to n as a list of rows.
    Build a multiplication table with nested list comprehensions. | Make an n by n times table.
    >>> multiplication_table(3)
    [[1, 2, 3], [2, 4, 6], [3, 6, 9]]
    """
    return [[row * column for column in range(1, n + 1)] for row in range(1, n + 1)]


def digits(number):
    """Returns the decimal digits of a whole number as a list.
    Split a number into its digits. | Turn 1305 into [1, 3, 0, 5] with a function.
    >>> digits(1305)
    [1, 3, 0, 5]
    """
    return [int(digit) for digit in str(abs(number))]


def compound_interest(capital, percent, years):
    """Returns a capital after some years of compound interest, rounded to cents.
    Write a function for compound interest. | How much is my money worth after n years of interest?
    >>> compound_interest(1000, 5, 2)
    1102.5
    """
    return round(capital * (1 + percent / 100) ** years, 2)


def hamming_distance(first, second):
    """Counts the places at which two texts of equal length differ.
    Compute the Hamming distance of two strings. | Count the differing characters of two strings.
    >>> hamming_distance("stone", "score")
    2
    """
    return sum(a != b for a, b in zip(first, second, strict=True))


def sum_of_digits(number):
    """Returns the sum of the decimal digits of a whole number.
    Write a function that adds up the digits of a number. | Compute a digit sum.
    >>> sum_of_digits(2048)
    14
    """
    return sum(int(digit) for digit in str(abs(number)))


def merge_sorted(left, right):
    """Merges two sorted lists into one sorted list.
    Merge two sorted lists without sorting again. | Write the merge step of merge sort.
    >>> merge_sorted([1, 4, 9], [2, 3, 10])
    [1, 2, 3, 4, 9, 10]
    """
    merged = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            j += 1
    return merged + left[i:] + right[j:]


def read_pairs(text):
    """Reads lines like "key = value" into a dictionary.
    Parse simple key = value lines. | Write a small parser for settings, one "name = value" a line.
    >>> read_pairs("colour = red\\nsize = 4")
    {'colour': 'red', 'size': '4'}
    """
    pairs = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        pairs[key.strip()] = value.strip()
    return pairs


def seconds_to_clock(seconds):
    """Writes a number of seconds as hours, minutes and seconds with colons.
    Format seconds as HH:MM:SS. | Convert 3725 seconds into a clock string in Python.
    >>> seconds_to_clock(3725)
    '01:02:05'
    """
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}"


def nth_largest(numbers, n):
    """Returns the n-th largest number of a list.
    Find the n-th largest element. | Write nth_largest(numbers, n), where n = 1 is the maximum.
    >>> nth_largest([8, 3, 10, 5], 2)
    8
    """
    return sorted(numbers, reverse=True)[n - 1]


def remove_punctuation(text):
    """Returns a text without its punctuation marks.
    Strip punctuation from a string. | Keep only letters, digits and spaces of a text.
    >>> remove_punctuation("Well, that's it!")
    'Well thats it'
    """
    return "".join(sign for sign in text if sign.isalnum() or sign.isspace())


def collatz_length(n):
    """Counts the steps to 1, if even numbers are halved and odd ones tripled and raised by 1.
    How many steps does the Collatz sequence of n take? | Follow the Collatz sequence in a loop.
    >>> collatz_length(6)
    8
    """
    steps = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    return steps


def histogram(counts):
    """Draws one line of stars for every name with its number.
    Print a text histogram of a dictionary. | Make a bar chart of stars, one line a key.
    >>> print(histogram({"ant": 3, "bee": 1}))
    ant ***
    bee *
    """
    return "\n".join(f"{name} {'*' * count}" for name, count in counts.items())


class Stack:
    """Keeps items of which the last one in is the first one out.
    Implement a stack class with push and pop. | Write a class for a last-in, first-out stack.
    >>> stack = Stack()
    >>> stack.push(1)
    >>> stack.push(2)
    >>> stack.pop()
    2
    """

    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        return self.items.pop()

    def __len__(self):
        return len(self.items)


class Account:
    """Keeps the balance of a bank account and refuses to overdraw it.
    Write a bank account class. | Create a class with deposit and withdraw that cannot go negative.
    >>> account = Account(50)
    >>> account.withdraw(20)
    >>> account.balance
    30
    """

    def __init__(self, balance=0):
        self.balance = balance

    def deposit(self, amount):
        self.balance += amount

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError("not enough money in the account")
        self.balance -= amount


class Queue:
    """Keeps items of which the first one in is the first one out.
    Implement a queue in Python with collections.deque. | Write a first-in, first-out queue class.
    >>> queue = Queue()
    >>> queue.put("a")
    >>> queue.put("b")
    >>> queue.get()
    'a'
    """

    def __init__(self):
        from collections import deque

        self.items = deque()

    def put(self, item):
        self.items.append(item)

    def get(self):
        return self.items.popleft()
